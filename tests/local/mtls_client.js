// A client over mTLS: node mtls_client.js ADDRESS PROTOS ROOTS CERTIFICATE KEY PROMPT writes {"png": hex}.
const fs = require("fs"), grpc = require("@grpc/grpc-js"), loader = require("@grpc/proto-loader");
const [address, protos, roots, certificate, key, prompt] = process.argv.slice(2);
const file = loader.loadSync("triptych/v1/image_generation.proto", { includeDirs: [protos], longs: String });
const { ImageGenerationService } = grpc.loadPackageDefinition(file).triptych.v1;
const credentials = grpc.credentials.createSsl(...[roots, key, certificate].map((path) => fs.readFileSync(path)));
const service = new ImageGenerationService(address, credentials, { "grpc.max_receive_message_length": 64 << 20 });
const parameters = { prompts: [prompt], seeds: [7], numInferenceSteps: 2 };
service.GenerateImages({ parameters }, (error, answer) => {
  if (error) throw error;
  console.log(JSON.stringify({ png: answer.images[0].png.toString("hex") }));
});
