// Outpainting: the picture in a frame, whose edges are dragged outwards.

import { useRef, useState } from "preact/hooks";
import { model } from "../form";
import { innerSize, type Margins, setMargins, type Side, start } from "../start";
import { Dialog } from "./dialog";

const SIDES: Side[] = ["left", "top", "right", "bottom"];
const OPPOSITE: Record<Side, Side> = { left: "right", right: "left", top: "bottom", bottom: "top" };
const KEYS: Record<Side, { more: string[]; less: string[] }> = {
  left: { more: ["ArrowLeft", "ArrowUp"], less: ["ArrowRight", "ArrowDown"] },
  right: { more: ["ArrowRight", "ArrowUp"], less: ["ArrowLeft", "ArrowDown"] },
  top: { more: ["ArrowUp"], less: ["ArrowDown"] },
  bottom: { more: ["ArrowDown"], less: ["ArrowUp"] },
};

export function FrameDialog({ onClose }: { onClose: () => void }) {
  const inner = innerSize();
  const { size_multiple: multiple, max_size: most } = model.value!;
  const [margins, setTo] = useState<Margins>(start.value!.margins);
  const board = useRef<SVGSVGElement>(null);
  const across = (side: Side): boolean => side === "left" || side === "right";
  const room = (side: Side): number => most - (across(side) ? inner.width : inner.height);
  const limit = (side: Side, now: Margins): number => room(side) - now[OPPOSITE[side]];
  const set = (side: Side, pixels: (now: number) => number): void =>
    setTo((now) => {
      const whole = Math.round(pixels(now[side]) / multiple) * multiple;
      return { ...now, [side]: Math.min(Math.max(whole, 0), limit(side, now)) };
    });
  // As much around the picture as can be seen well, and no more than can be made.
  const pad = { x: Math.min(room("left"), inner.width), y: Math.min(room("top"), inner.height) };
  const box = { x: -pad.x, y: -pad.y, width: inner.width + 2 * pad.x, height: inner.height + 2 * pad.y };
  const thick = Math.max(box.width, box.height) / 60;
  const frame = {
    x: -margins.left,
    y: -margins.top,
    width: inner.width + margins.left + margins.right,
    height: inner.height + margins.top + margins.bottom,
  };
  const drag = (side: Side, event: PointerEvent): void => {
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(board.current!.getScreenCTM()!.inverse());
    const pixels = { left: -at.x, right: at.x - inner.width, top: -at.y, bottom: at.y - inner.height };
    set(side, () => pixels[side]);
  };
  const onKey = (side: Side, event: KeyboardEvent): void => {
    const { more, less } = KEYS[side];
    const step = more.includes(event.key) ? multiple : less.includes(event.key) ? -multiple : 0;
    if (!step) return;
    event.preventDefault();
    set(side, (now) => now + step);
  };
  return (
    <Dialog title="Drag the frame to extend the picture" onClose={onClose}>
      <svg ref={board} class="frame" viewBox={`${box.x} ${box.y} ${box.width} ${box.height}`}>
        <rect class="new" {...frame} />
        <image href={start.value!.url} width={inner.width} height={inner.height} preserveAspectRatio="xMidYMid slice" />
        {SIDES.map((side) => (
          <rect
            class={across(side) ? "edge across" : "edge"}
            role="slider"
            tabindex={0}
            aria-label={`Pixels to the ${side === "top" || side === "bottom" ? side : `${side} side`}`}
            aria-orientation={across(side) ? "horizontal" : "vertical"}
            aria-valuemin={0}
            aria-valuemax={limit(side, margins)}
            aria-valuenow={margins[side]}
            x={side === "right" ? frame.x + frame.width - thick / 2 : frame.x - thick / 2}
            y={side === "bottom" ? frame.y + frame.height - thick / 2 : frame.y - thick / 2}
            width={across(side) ? thick : frame.width + thick}
            height={across(side) ? frame.height + thick : thick}
            onKeyDown={(event) => onKey(side, event)}
            onPointerDown={(event) => event.currentTarget.setPointerCapture(event.pointerId)}
            onPointerMove={(event) => event.buttons && drag(side, event)}
          />
        ))}
      </svg>
      <p class="hint" aria-live="polite">
        {frame.width} × {frame.height}
      </p>
      <div class="actions">
        <button type="button" class="primary" onClick={() => (setMargins(margins), onClose())}>
          Use this frame
        </button>
        <button type="button" onClick={() => setTo({ left: 0, top: 0, right: 0, bottom: 0 })}>
          Only the picture
        </button>
        <button type="button" onClick={onClose}>
          Cancel
        </button>
      </div>
    </Dialog>
  );
}
