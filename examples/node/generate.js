// A client of Triptych: node generate.js ADDRESS picture PROMPT FILE | cancel PROMPT | deadline PROMPT | wrong
const fs = require("fs"), path = require("path");
const grpc = require("@grpc/grpc-js"), loader = require("@grpc/proto-loader"), protobuf = require("protobufjs");

const protos = process.env.TRIPTYCH_PROTOS ?? path.join(__dirname, "../../protos");
const errors = process.env.TRIPTYCH_ERRORS ?? path.join(__dirname, "../protos/errors.proto");
const options = { includeDirs: [protos], longs: String, oneofs: true, defaults: true };
const file = loader.loadSync("triptych/v1/image_generation.proto", options);
const { ImageGenerationService } = grpc.loadPackageDefinition(file).triptych.v1;
const rpc = protobuf.loadSync(errors);

const [address, command, prompt, out] = process.argv.slice(2);
const service = new ImageGenerationService(address, grpc.credentials.createInsecure(),
  { "grpc.max_receive_message_length": 64 << 20 });

// The details of an error: BadRequest, RetryInfo.
function details(error, name) {
  const [status] = error.metadata?.get("grpc-status-details-bin") ?? [];
  if (!status) return [];
  return rpc.lookupType("google.rpc.Status").decode(status).details
    .filter((one) => one.type_url.endsWith(`google.rpc.${name}`))
    .map((one) => rpc.lookupType(`google.rpc.${name}`).decode(one.value));
}

// A picture's file. A server that is away is asked again, with the seed that it had chosen: it is the same picture.
async function picture(parameters, tries = 5) {
  try {
    for await (const { event, queued, accepted, stepCompleted, image } of service.Generate({ parameters })) {
      if (event === "queued") console.log(`number ${queued.position} in the queue`);
      if (event === "accepted") parameters = { ...parameters, seeds: accepted.parameters.seeds };
      if (event === "stepCompleted") console.log(`step ${stepCompleted.step} of ${stepCompleted.numSteps}`);
      if (event === "image") return { file: image.png, seed: image.seed };
    }
  } catch (error) {
    if (error.code !== grpc.status.UNAVAILABLE || tries === 1) throw error;
    const [info] = details(error, "RetryInfo");
    const seconds = Number(info?.retryDelay?.seconds ?? 0) + (info?.retryDelay?.nanos ?? 1e8) / 1e9;
    console.log(`again with seed ${parameters.seeds?.[0] ?? "of the server's choice"}`);
    await new Promise((resolve) => setTimeout(resolve, 1000 * seconds));
    return picture(parameters, tries - 1);
  }
}

const commands = {
  async picture() {
    const { file, seed } = await picture({ prompts: [prompt], numInferenceSteps: 3 });
    fs.writeFileSync(out, file);
    console.log(`seed ${seed}`);
  },
  async cancel() {
    const call = service.Generate({ parameters: { prompts: [prompt], numInferenceSteps: 50 } });
    for await (const { event } of call) if (event === "stepCompleted") call.cancel();
  },
  async deadline() {
    const call = service.Generate({ parameters: { prompts: [prompt] } }, { deadline: Date.now() + 50 });
    for await (const _ of call);
  },
  async wrong() {
    for await (const _ of service.Generate({ parameters: { prompts: [], height: 3 } }));
  },
};

commands[command]().catch((error) => {
  console.log(`${grpc.status[error.code] ?? error}`);
  for (const { fieldViolations } of details(error, "BadRequest"))
    for (const { field, description } of fieldViolations) console.log(`${field}: ${description}`);
}).finally(() => service.close());
