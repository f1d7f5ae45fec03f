// A brush: what is painted is made anew.

import { useEffect, useRef, useState } from "preact/hooks";
import { setMask, start } from "../start";
import { Dialog } from "./dialog";
import { NumberField } from "./number";

/** A line in the picture's pixels. */
interface Stroke {
  points: [number, number][];
  size: number;
  erases: boolean;
}

const PAINT = "#4a51c4";

export function MaskDialog({ onClose }: { onClose: () => void }) {
  const { url, width, height, mask } = start.value!;
  const longest = Math.max(width, height);
  const canvas = useRef<HTMLCanvasElement>(null);
  const before = useRef<ImageBitmap | null>(null);
  const [strokes, setStrokes] = useState<Stroke[]>([]);
  const [size, setSize] = useState(Math.max(1, Math.round(longest / 8)));
  const [erases, setErases] = useState(false);
  const [at, setAt] = useState<[number, number]>([width / 2, height / 2]);
  const draw = (): void => paint(canvas.current!, before.current, strokes);
  useEffect(draw, [strokes]);
  useEffect(() => {
    if (mask) void drawn(mask).then((bitmap) => ((before.current = bitmap), paint(canvas.current!, bitmap, [])));
  }, []);

  const place = (event: PointerEvent): [number, number] => {
    const box = canvas.current!.getBoundingClientRect();
    return [((event.clientX - box.left) / box.width) * width, ((event.clientY - box.top) / box.height) * height];
  };
  const begin = (point: [number, number]): void =>
    setStrokes((now) => [...now, { points: [point], size, erases }]);
  const goOn = (point: [number, number]): void =>
    setStrokes((now) => {
      const last = now.at(-1)!;
      return now.with(-1, { ...last, points: [...last.points, point] });
    });
  const undo = (): void => setStrokes((now) => now.slice(0, -1));
  const onKey = (event: KeyboardEvent): void => {
    const moves: Record<string, [number, number]> = {
      ArrowLeft: [-1, 0],
      ArrowRight: [1, 0],
      ArrowUp: [0, -1],
      ArrowDown: [0, 1],
    };
    const move = moves[event.key];
    if (move) {
      const step = Math.max(1, size / 2);
      setAt([clamp(at[0] + move[0] * step, width), clamp(at[1] + move[1] * step, height)]);
    } else if (event.key === " ") begin(at);
    else if (event.key === "[") setSize(Math.max(1, Math.round(size * 0.8)));
    else if (event.key === "]") setSize(Math.min(longest, Math.round(size * 1.25) + 1));
    else if (event.key === "z" && (event.ctrlKey || event.metaKey)) undo();
    else return;
    event.preventDefault();
  };
  const use = async (): Promise<void> => {
    setMask(await file(canvas.current!));
    onClose();
  };

  return (
    <Dialog title="Paint what is made anew" onClose={onClose}>
      <div class="board" style={{ aspectRatio: `${width} / ${height}` }}>
        <img src={url} alt="" />
        <canvas
          ref={canvas}
          {...{ width, height }}
          tabIndex={0}
          role="application"
          aria-label="Mask: arrow keys move the brush, space paints, brackets change its size"
          onKeyDown={onKey}
          onPointerDown={(event) => {
            event.currentTarget.setPointerCapture(event.pointerId);
            setAt(place(event));
            begin(place(event));
          }}
          onPointerMove={(event) => {
            setAt(place(event));
            if (event.buttons) goOn(place(event));
          }}
        />
        <svg viewBox={`0 0 ${width} ${height}`} aria-hidden="true">
          <circle cx={at[0]} cy={at[1]} r={size / 2} />
        </svg>
      </div>
      <div class="actions">
        <button type="button" aria-pressed={!erases} onClick={() => setErases(false)}>
          Brush
        </button>
        <button type="button" aria-pressed={erases} onClick={() => setErases(true)}>
          Eraser
        </button>
        <button type="button" disabled={!strokes.length} title="Ctrl+Z" onClick={undo}>
          Undo
        </button>
      </div>
      <NumberField label="Brush size" value={size} min={1} max={longest} step={1} onChange={setSize} />
      <div class="actions">
        <button type="button" class="primary" onClick={() => void use()}>
          Use this mask
        </button>
        <button type="button" onClick={onClose}>
          Cancel
        </button>
      </div>
    </Dialog>
  );
}

const clamp = (value: number, most: number): number => Math.min(Math.max(value, 0), most);

/** Opaque where it is painted. */
function paint(canvas: HTMLCanvasElement, before: ImageBitmap | null, strokes: Stroke[]): void {
  const context = canvas.getContext("2d")!;
  context.globalCompositeOperation = "source-over";
  context.clearRect(0, 0, canvas.width, canvas.height);
  if (before) context.drawImage(before, 0, 0, canvas.width, canvas.height);
  context.strokeStyle = PAINT;
  context.lineCap = context.lineJoin = "round";
  for (const { points, size, erases } of strokes) {
    context.globalCompositeOperation = erases ? "destination-out" : "source-over";
    context.lineWidth = size;
    context.beginPath();
    context.moveTo(...points[0]!);
    points.forEach((point) => context.lineTo(...point));
    if (points.length === 1) context.lineTo(points[0]![0] + 0.01, points[0]![1]);
    context.stroke();
  }
}

/** The mask's file: black and white alone, so that what it keeps is kept; null if nothing is painted. */
async function file(canvas: HTMLCanvasElement): Promise<Blob | null> {
  const { width, height } = canvas;
  const picture = canvas.getContext("2d")!.getImageData(0, 0, width, height);
  let painted = false;
  for (let pixel = 0; pixel < picture.data.length; pixel += 4) {
    const white = picture.data[pixel + 3]! >= 128 ? 255 : 0;
    painted ||= white > 0;
    picture.data.fill(white, pixel, pixel + 3);
    picture.data[pixel + 3] = 255;
  }
  const written = new OffscreenCanvas(width, height);
  written.getContext("2d")!.putImageData(picture, 0, 0);
  return painted ? written.convertToBlob() : null;
}

/** A mask's file with transparency instead of black. */
async function drawn(mask: Blob): Promise<ImageBitmap> {
  const bitmap = await createImageBitmap(mask);
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  const context = canvas.getContext("2d")!;
  context.drawImage(bitmap, 0, 0);
  const picture = context.getImageData(0, 0, canvas.width, canvas.height);
  for (let pixel = 0; pixel < picture.data.length; pixel += 4) picture.data[pixel + 3] = picture.data[pixel]!;
  context.putImageData(picture, 0, 0);
  return createImageBitmap(canvas);
}
