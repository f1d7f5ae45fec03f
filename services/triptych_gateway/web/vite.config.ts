import { defineConfig } from "vite";

// For `npx vite`, which serves the sources in front of a gateway.
const gateway = "http://127.0.0.1:8000";

export default defineConfig({
  build: {
    outDir: "../static",
    emptyOutDir: true,
    target: "es2023",
    modulePreload: { polyfill: false },
    assetsInlineLimit: 0,
    reportCompressedSize: false,
  },
  oxc: { jsx: { runtime: "automatic", importSource: "preact" } },
  server: { proxy: { "/triptych": gateway, "/health": gateway } },
});
