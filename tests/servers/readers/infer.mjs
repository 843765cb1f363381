// One ONNX file in onnxruntime-node: float32 images [N, C, H, W] on stdin → float32 logits on stdout.
//
//     node infer.mjs FILE OPTIMIZATION C,H,W BATCH... < images > logits
//
// OPTIMIZATION is "all", or "disabled" to run every node as it stands. The images are fed in the batches named, one
// after another. The package is looked up in the working directory, which is where `make servers` put it.
import { readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";

const ort = createRequire(`${process.cwd()}/`)("onnxruntime-node");
const [file, graphOptimizationLevel, image, ...batches] = process.argv.slice(2);
const shape = image.split(",").map(Number);
const { buffer, byteOffset, byteLength } = readFileSync(0);
const pixels = new Float32Array(buffer.slice(byteOffset, byteOffset + byteLength));

const session = await ort.InferenceSession.create(file, { graphOptimizationLevel, intraOpNumThreads: 1 });
let at = 0;
for (const batch of batches.map(Number)) {
  const size = shape.reduce((product, length) => product * length, batch);
  const input = new ort.Tensor("float32", pixels.slice(at, at + size), [batch, ...shape]);
  const { logits } = await session.run({ input });
  writeFileSync(1, new Uint8Array(logits.data.buffer, logits.data.byteOffset, logits.data.byteLength));
  at += size;
}
