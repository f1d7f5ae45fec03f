// A client of Triptych by grpc-web. Its stubs are made of the protos: npm run stubs.
import { create, type MessageInitShape } from "@bufbuild/protobuf";
import { Code, ConnectError, createClient } from "@connectrpc/connect";
import { createGrpcWebTransport } from "@connectrpc/connect-web";
import { BadRequestSchema, RetryInfoSchema } from "./gen/errors_pb";
import { GenerationParametersSchema } from "./gen/triptych/v1/generation_parameters_pb";
import {
  type GeneratedImage,
  type GenerateResponse,
  ImageGenerationService,
} from "./gen/triptych/v1/image_generation_pb";

type Event = GenerateResponse["event"];

export interface Call {
  server: string;
  /** An API key or a token, where the server asks who calls. */
  key?: string;
  /** Aborted, it cancels the work. */
  signal?: AbortSignal;
  /** When the server gives up, as performance.now() counts. */
  deadline?: number;
  onEvent(event: Event): void;
  onRetry(seed: bigint | undefined): void;
}

const TRIES = 5;

/** A picture. A server that is away is asked again, with the seed that it had chosen: it is the same picture. */
export async function generate(
  said: MessageInitShape<typeof GenerationParametersSchema>,
  { server, key, signal, deadline = Infinity, onEvent, onRetry }: Call,
): Promise<GeneratedImage> {
  const client = createClient(ImageGenerationService, createGrpcWebTransport({ baseUrl: server }));
  const headers = new Headers(key ? { authorization: `Bearer ${key}` } : {});
  const parameters = create(GenerationParametersSchema, said);
  for (let tries = 1; ; tries++) {
    const left = deadline - performance.now();
    const timeoutMs = left === Infinity ? undefined : Math.max(1, Math.round(left));
    let made: GeneratedImage | undefined;
    try {
      for await (const { event } of client.generate({ parameters }, { headers, signal, timeoutMs })) {
        if (event.case === "accepted") parameters.seeds = event.value.parameters?.seeds ?? [];
        if (event.case === "image") made = event.value;
        onEvent(event);
      }
      if (made) return made;
      throw new ConnectError("the server sent no picture", Code.DataLoss);
    } catch (reason) {
      const error = ConnectError.from(reason);
      if (!isAway(error) || tries === TRIES) throw error;
      onRetry(parameters.seeds[0]);
      await pause(error, signal);
    }
  }
}

/** Whether the server is away, or was lost in the middle, which fetch says by a TypeError. */
const isAway = (error: ConnectError): boolean => error.code === Code.Unavailable || error.cause instanceof TypeError;

/** As long as the server says, or a tenth of a second. */
async function pause(error: ConnectError, signal?: AbortSignal): Promise<void> {
  const delay = error.findDetails(RetryInfoSchema)[0]?.retryDelay;
  const milliseconds = delay ? 1000 * Number(delay.seconds) + delay.nanos / 1e6 : 100;
  await new Promise((resolve) => setTimeout(resolve, milliseconds));
  signal?.throwIfAborted();
}

/** Which fields of a request are wrong, and why. */
export function wrongFields(error: ConnectError): { field: string; description: string }[] {
  return error.findDetails(BadRequestSchema).flatMap((detail) => detail.fieldViolations);
}
