import { render } from "preact";
import { connect } from "./actions";
import { App } from "./components/app";
import { readGallery } from "./gallery";
import "./style.css";

render(<App />, document.getElementById("page")!);
void readGallery();
void connect();
