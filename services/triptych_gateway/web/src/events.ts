// Server-sent events of a stream: https://html.spec.whatwg.org/multipage/server-sent-events.html, as far as
// the gateway writes them (one line of data an event, no ids).

export interface ServerSent {
  event: string;
  data: string;
}

export async function* events(stream: ReadableStream<Uint8Array>): AsyncGenerator<ServerSent> {
  const reader = stream.pipeThrough(new TextDecoderStream() as ReadableWritablePair<string, Uint8Array>).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const blocks = (rest + value).split("\n\n");
      rest = blocks.pop()!;
      for (const block of blocks) {
        const event = read(block);
        if (event) yield event;
      }
    }
  } finally {
    await reader.cancel().catch(() => undefined);
  }
}

function read(block: string): ServerSent | null {
  const fields = Object.fromEntries(
    block.split("\n").map((line) => {
      const colon = line.indexOf(":");
      return [line.slice(0, colon), line.slice(colon + 1).trimStart()];
    }),
  );
  return fields["data"] === undefined ? null : { event: fields["event"] ?? "message", data: fields["data"] };
}
