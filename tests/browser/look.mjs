// Opens a page in Chromium and says what is wrong with it, as one JSON object; pictures go into a folder.
//
//   node look.mjs report FILE.html FOLDER       a report: light, dark, phone, print; hover, keys; axe
//   node look.mjs mlflow http://HOST:PORT ID FOLDER   MLflow's run list of experiment ID, and one run's charts
//   node look.mjs picture FILE.html FOLDER      one page, as picture.png
import { createRequire } from "node:module";
import { mkdirSync, readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";
import puppeteer from "puppeteer-core";

const require = createRequire(import.meta.url);
const axe = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");
const CHROMIUM = process.env.CHROMIUM ?? "/usr/bin/chromium";
const SIZES = { wide: [1280, 900], phone: [390, 844] };

async function report(browser, file, folder) {
  const found = { errors: [], requests: [], overflow: {}, axe: {}, tip: "", tipByKey: "", rows: 0, filtered: "" };
  const page = await browser.newPage();
  page.setDefaultTimeout(PATIENCE);
  page.on("pageerror", (error) => found.errors.push(error.message));
  page.on("request", (request) => request.url().startsWith("http") && found.requests.push(request.url()));
  for (const [size, [width, height]] of Object.entries(SIZES)) {
    for (const scheme of ["light", "dark"]) {
      await page.setViewport({ width, height });
      await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: scheme }]);
      await page.goto(pathToFileURL(file).href, { waitUntil: "load" });
      const name = `${size}-${scheme}`;
      await page.screenshot({ path: `${folder}/report-${name}.png` });
      found.overflow[name] = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
      if (size === "phone" && scheme === "dark") continue; // its rules are those of the other three
      await page.evaluate(axe);
      // A drawing is one picture with a text of its own: what lies inside is not read out.
      const { violations } = await page.evaluate(() =>
        window.axe.run({ exclude: [["svg"]] }, { resultTypes: ["violations"] }),
      );
      found.axe[name] = violations.map((v) => ({ id: v.id, impact: v.impact, at: v.nodes.slice(0, 3).map((n) => n.target.join(" ")) }));
      if (scheme === "light") await page.screenshot({ path: `${folder}/report-${name}-whole.png`, fullPage: true });
    }
  }
  await page.setViewport({ width: 1280, height: 900 });
  const plot = await page.$(".plot.live");
  if (plot) {
    await plot.evaluate((element) => element.scrollIntoView({ block: "center" }));
    await plot.focus();
    await page.keyboard.press("ArrowRight");
    found.tipByKey = await plot.$eval(".tip", (tip) => tip.textContent);
    const ring = await plot.$eval(".ring", (r) => { const b = r.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]; });
    await page.keyboard.press("Escape");
    await page.mouse.move(ring[0] + 3, ring[1] + 3);
    found.tip = await plot.$eval(".tip", (tip) => tip.textContent);
    await page.screenshot({ path: `${folder}/report-hover.png` });
    found.rows = await page.$$eval("#measurements tbody tr", (rows) => rows.length);
    await page.type("#measurements input", "diverged");
    found.filtered = await page.$eval("#measurements .tools [role=status]", (count) => count.textContent);
  }
  await page.pdf({ path: `${folder}/report-print.pdf`, format: "A4" });
  return found;
}

async function picture(browser, file, folder) {
  const page = await browser.newPage();
  page.setDefaultTimeout(PATIENCE);
  await page.setViewport({ width: 1500, height: 760 });
  await page.goto(pathToFileURL(file).href, { waitUntil: "load" });
  await page.screenshot({ path: `${folder}/picture.png`, fullPage: true });
  return {};
}

async function mlflow(browser, address, experiment, folder) {
  const page = await browser.newPage();
  page.setDefaultTimeout(PATIENCE);
  await page.setViewport({ width: 1500, height: 900 });
  const runs = '[role="gridcell"] a[href*="/runs/"]';
  await page.goto(`${address}/#/experiments/${experiment}/runs`, { waitUntil: "domcontentloaded" });
  const parent = await page.waitForSelector(runs);
  await page.evaluate(() => document.querySelector('button[aria-label*="lose"]')?.click()); // the assistant beside the list
  await parent.evaluate((link) => link.closest('[role="gridcell"]').querySelector("button").click()); // its children
  await page.waitForFunction((found) => document.querySelectorAll(found).length > 1, {}, runs);
  const names = await page.$$eval(runs, (links) => links.map((link) => link.textContent));
  await page.screenshot({ path: `${folder}/mlflow-runs.png` });
  const links = await page.$$eval(runs, (found) => found.map((link) => link.href));
  await page.goto(links[1], { waitUntil: "domcontentloaded" });
  await page.waitForFunction(() => /trial_id/.test(document.body.innerText));
  await page.screenshot({ path: `${folder}/mlflow-run.png` });
  await page.goto(`${links[1].split("?")[0]}/model-metrics`, { waitUntil: "domcontentloaded" });
  await page.waitForFunction(() => document.querySelectorAll(".js-plotly-plot .trace, .js-plotly-plot canvas").length > 0);
  await page.screenshot({ path: `${folder}/mlflow-charts.png` });
  return { names };
}

const PATIENCE = Number(process.env.PATIENCE ?? 240) * 1000; // milliseconds; machines that test are busy
const [kind, ...rest] = process.argv.slice(2);
const folder = rest.at(-1);
mkdirSync(folder, { recursive: true });
const browser = await puppeteer.launch({
  executablePath: CHROMIUM,
  args: ["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
  protocolTimeout: PATIENCE,
});
try {
  console.log(JSON.stringify(await { report, mlflow, picture }[kind](browser, ...rest), null, 1));
} finally {
  await browser.close();
}
