// node web_check.mjs FOLDER JOB.json: what the ES module of FOLDER gives for a job, as JSON.
import { readFile } from "node:fs/promises";
import { pathToFileURL } from "node:url";

const [folder, jobFile] = process.argv.slice(2);
const { load, readImage, fit } = await import(pathToFileURL(`${folder}/binwrn/binwrn.js`));
const job = JSON.parse(await readFile(jobFile, "utf8"));
const attempt = async (action) => {
  try {
    return await action();
  } catch (error) {
    return `${error.name}: ${error.message}`;
  }
};
const pictures = [];
for (const { path, shape, rule } of job.pictures ?? [])
  pictures.push(
    await attempt(async () => {
      const image = fit(await readImage(await readFile(path), shape[2]), shape, rule);
      return { shape: [image.height, image.width, image.channels], data: Buffer.from(image.data).toString("base64") };
    }),
  );
const models = [];
for (const { path, pixels } of job.models ?? [])
  models.push(
    await attempt(async () => {
      const model = await load(path);
      const { shape, resize, classNames, weights, bytes } = model;
      const all = new Uint8Array(await readFile(pixels));
      const size = shape[0] * shape[1] * shape[2];
      const logits = Array.from(model.logits(all));
      const { classes } = model.predict(all.subarray(0, size));
      const wrong = await attempt(() => model.logits(all.subarray(1)));
      model.free();
      const freed = await attempt(() => model.logits(all));
      return { shape, resize, classNames, weights, bytes, logits, classes, wrong, freed };
    }),
  );
console.log(JSON.stringify({ pictures, models }));
