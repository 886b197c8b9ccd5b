// A person at a browser: what the scripts that drive Chromium share. Chromium is $CHROMIUM or on the PATH.

import assert from 'node:assert/strict';
import { accessSync, constants } from 'node:fs';
import path from 'node:path';
import { setImmediate } from 'node:timers/promises';

import { chromium } from 'playwright-core';

export const START = '/.pomerium/oauth/start';
export const CALLBACK = '/.pomerium/oauth/callback';
export const DISCONNECT = '/.pomerium/oauth/disconnect';
export const NOTES = 'https://notes.localhost';
export const TICKETS = 'https://tickets.localhost';
/** How long anything may take, in ms. */
const PATIENCE = 10_000;

export const start = (origin, returnTo) =>
  `${origin}${START}${returnTo ? `?return_to=${encodeURIComponent(returnTo)}` : ''}`;

/** Starts Chromium with rules on where hosts are, of which the first that fits counts. */
export async function launch(hostRules) {
  const browser = await chromium.launch({
    executablePath: process.env.CHROMIUM || findChromium(),
    args: [
      '--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run',
      '--disable-background-networking', '--disable-component-update', '--disable-sync',
      `--host-resolver-rules=${hostRules.join()}`,
    ],
  });
  console.log(`Chromium ${browser.version()}`);
  return browser;
}

function findChromium() {
  const names = ['chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable'];
  const folders = (process.env.PATH ?? '').split(path.delimiter);
  const found = names.flatMap((name) => folders.map((folder) => path.join(folder, name))).find((file) => {
    try {
      accessSync(file, constants.X_OK);
      return true;
    } catch {
      return false;
    }
  });
  assert.ok(found, 'no Chromium on the PATH; set CHROMIUM');
  return found;
}

/**
 * `check` runs a scenario, which must make the numbers of `counts` grow by exactly what it expects. `open` gives it a
 * profile that visits pages of `origins` only, `openAnywhere` one that also visits others. `finish` says how many
 * passed.
 */
export function scenarios(browser, { counts, origins }) {
  let passed = 0;
  let failed = 0;
  const check = async (name, expected, body) => {
    const contexts = [];
    const complaints = [];
    const opener = (watched) => async (options) => {
      const context = await profile(browser, options);
      if (watched) {
        watch(context, origins, complaints);
      }
      contexts.push(context);
      return context;
    };
    try {
      const before = await counts();
      await body({ open: opener(true), openAnywhere: opener(false) });
      const after = await counts();
      const done = Object.fromEntries(Object.keys(before).map((what) => [what, after[what] - before[what]]));
      assert.deepEqual(done, expected);
      assert.deepEqual(complaints, []);
      passed += 1;
      console.log(`ok - ${name}`);
    } catch (error) {
      failed += 1;
      // The first line of a message: what follows is Playwright's log.
      const { generatedMessage, actual, expected: wanted } = error;
      const values = generatedMessage && `${JSON.stringify(actual)}, not ${JSON.stringify(wanted)}`;
      console.log(`not ok - ${name} (${values || String(error.message).split('\n', 1)[0]})`);
      console.error(error.stack);
    } finally {
      await Promise.all(contexts.map((context) => context.close()));
    }
  };
  const finish = () => {
    console.log(`${passed} passed, ${failed} failed`);
    process.exitCode = failed === 0 ? 0 : 1;
  };
  return { check, finish };
}

/** A profile of its own. */
async function profile(browser, options) {
  const context = await browser.newContext({
    // Whether the certificate is trusted is the client's business, and tested elsewhere.
    ignoreHTTPSErrors: true,
    viewport: { width: 1280, height: 800 },
    ...options,
  });
  context.setDefaultTimeout(PATIENCE);
  return context;
}

/**
 * What a profile's pages do that ours never do is added to `complaints`: a script, a request for something on a page,
 * a message on the console.
 */
function watch(context, origins, complaints) {
  context.on('weberror', (error) => complaints.push(`an error on a page: ${error.error().message}`));
  context.on('console', (message) => {
    // A refusal is a page with a status that says so, and Chromium notes that status.
    const status = message.text().startsWith('Failed to load resource: the server responded with a status of');
    if (!status || new URL(message.location().url).pathname === '/favicon.ico') {
      complaints.push(`on the console: ${message.text()}`);
    }
  });
  context.on('request', (request) => {
    const { origin } = new URL(request.url());
    if (request.resourceType() !== 'document' || !origins.includes(origin)) {
      complaints.push(`a request: ${request.resourceType()} ${request.url()}`);
    }
  });
}

/** Asks again and again, since nothing tells when it is so. */
export async function until(what, holds) {
  const end = Date.now() + PATIENCE;
  while (!(await holds())) {
    assert.ok(Date.now() < end, `waited in vain: ${what}`);
    // What is waited for may be this process's own to do.
    await setImmediate();
  }
}

/** Does what leads to another page, waits for that page, and gives the answer that it came with. */
export async function follow(page, act) {
  const final = (response) =>
    response.request().isNavigationRequest() &&
    response.frame() === page.mainFrame() &&
    (response.status() < 300 || response.status() >= 400);
  const [response] = await Promise.all([page.waitForEvent('response', final), page.waitForEvent('load'), act()]);
  return response;
}

export const press = (page) => page.getByRole('button', { name: /^Connect( again)?$/ }).click();
export const goOn = (page) => page.getByRole('link', { name: 'Go on' }).click();
export const startAgain = (page) => page.getByRole('link', { name: 'Start again' }).click();
export const heading = (page) => page.getByRole('heading', { level: 1 }).innerText();

export async function isRefused(page, response, status, title) {
  assert.equal(response.status(), status);
  assert.equal(await heading(page), title);
}

/** Where a person wanted to go, with nothing of the flow in its address, and nothing that it could know of it. */
export async function hasLanded(page, returnTo, origin = NOTES) {
  assert.equal(page.url(), `${origin}${returnTo}`);
  assert.equal(await heading(page), 'The upstream');
  assert.equal(await page.evaluate(() => document.referrer), '', 'the upstream learns no address of ours');
}
