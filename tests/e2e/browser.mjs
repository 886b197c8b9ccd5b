// Chromium as the person who connects: does the flow hold in a real browser, and are its pages fit for a person?
//
// https://notes.localhost, tickets.localhost and E2E_LONG_HOST are routes of the Envoy at 127.0.0.1:E2E_ENVOY_PORT.
// other.localhost is one of the Envoy at E2E_NAMELESS_PORT, where nobody says who the person is, and acme.localhost of the
// one at E2E_NAMED_PORT, where the person has a name and the pages have a brand. E2E_NEIGHBOUR is the
// origin of the authorization server, called E2E_ISSUER in its answers, and of a handle on the choreographer behind all
// of them. Pictures of all pages go to E2E_SCREENSHOTS, or beside this file.

import assert from 'node:assert/strict';
import { mkdirSync } from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

import axe from 'axe-core';

import {
  CALLBACK, DISCONNECT, NOTES, START, TICKETS, follow, goOn, hasLanded, heading, isRefused, launch, press, scenarios, start,
  startAgain, until,
} from './person.mjs';

const NAMELESS = 'https://other.localhost';
const ACME = 'https://acme.localhost';

const { E2E_ENVOY_PORT, E2E_NAMELESS_PORT, E2E_NAMED_PORT, E2E_NEIGHBOUR, E2E_ISSUER, E2E_LONG_HOST, E2E_SCREENSHOTS } = process.env;
for (const [name, value] of Object.entries({
  E2E_ENVOY_PORT, E2E_NAMELESS_PORT, E2E_NAMED_PORT, E2E_NEIGHBOUR, E2E_ISSUER, E2E_LONG_HOST,
})) {
  assert.ok(value, `${name} must be set`);
}
const LONG = `https://${E2E_LONG_HOST}`;
const OURS = [NOTES, TICKETS, NAMELESS, ACME, LONG];
const pictures = E2E_SCREENSHOTS || fileURLToPath(new URL('screenshots', import.meta.url));
mkdirSync(pictures, { recursive: true });

// ---- the choreographer ----

async function counts() {
  const answer = await fetch(`${E2E_NEIGHBOUR}/fake`);
  return answer.json();
}

/** Does something while the choreographer is in a mood. */
async function during(mood, body) {
  await set(mood);
  try {
    return await body();
  } finally {
    await set(mood === 'down' ? 'up' : 'correct');
  }
}

async function set(mood) {
  const answer = await fetch(`${E2E_NEIGHBOUR}/fake/${mood}`, { method: 'POST' });
  assert.equal(answer.status, 200, mood);
}

// ---- a person at a browser ----

const allow = (page) => page.getByRole('button', { name: 'Allow' }).click();
const deny = (page) => page.getByRole('link', { name: 'Deny' }).click();

/** A tab on the page of the authorization server, a flow begun. */
async function begun(context, returnTo, origin = NOTES) {
  const page = await context.newPage();
  await page.goto(start(origin, returnTo));
  await follow(page, () => press(page));
  isAtServer(page);
  return page;
}

function isAtServer(page) {
  const url = new URL(page.url());
  assert.equal(`${url.origin}${url.pathname}`, `${E2E_NEIGHBOUR}/authorize`);
}

/** The address that the authorization server would send this page's browser back to, without sending it. */
async function wayBack(page) {
  const action = await page.locator('form').getAttribute('action');
  const answer = await fetch(new URL(action, E2E_NEIGHBOUR), { method: 'POST', redirect: 'manual' });
  const location = answer.headers.get('location');
  assert.ok(location.startsWith(`${NOTES}${CALLBACK}?code=`), location);
  return location;
}

// ---- the scenarios, and what each makes the choreographer do ----

const NOTHING = { begins: 0, completions: 0, exchanges: 0, disconnects: 0 };
const ONE = { ...NOTHING, begins: 1, completions: 1, exchanges: 1 };
const TWO = { ...NOTHING, begins: 2, completions: 2, exchanges: 2 };
const AGAIN = { ...NOTHING, begins: 1, completions: 2, exchanges: 1 };
const OTHER_BEGUN = { ...NOTHING, begins: 2, completions: 1, exchanges: 1 };
const DENIED = { ...NOTHING, begins: 2, completions: 1 };
const DISCONNECTED = { ...NOTHING, disconnects: 1 };

async function runFlows(check) {
  await check('a person connects and comes back', ONE, async ({ open }) => {
    const page = await (await open()).newPage();
    const shown = await page.goto(start(NOTES, '/mcp?tab=1'));
    assert.equal(shown.status(), 200);
    assert.equal(await heading(page), 'Connect Pomerium MCP Proxy - notes.localhost?');
    const text = await page.locator('main').innerText();
    for (const part of ['notes.localhost', 'https://mcp.example/workspaces/engineering', E2E_ISSUER]) {
      assert.ok(text.includes(part), `the page names ${part}`);
    }
    await follow(page, () => press(page));
    isAtServer(page);
    assert.equal(await page.locator('#client').innerText(), `${NOTES}/.well-known/mcp-client-metadata.json`);
    assert.equal(await page.evaluate(() => document.referrer), '', 'the server learns no address of ours');
    await follow(page, () => allow(page));
    await hasLanded(page, '/mcp?tab=1');
  });

  await check('to look at the page begins nothing', NOTHING, async ({ open }) => {
    const context = await open();
    const page = await context.newPage();
    await page.goto(start(NOTES, '/mcp'));
    await page.reload();
    assert.deepEqual(await context.cookies(), []);
  });

  await check('the cookie is for our own host alone, for ten minutes', ONE, async ({ open }) => {
    const context = await open();
    const now = Date.now() / 1000;
    const page = await begun(context, '/mcp');
    const [cookie, ...others] = await context.cookies();
    assert.deepEqual(others, []);
    const { name, value, expires, ...attributes } = cookie;
    assert.match(name, /^__Host-envoy_cimd_[\w-]+$/);
    assert.match(value, /^[\w-]{43}$/, '256 bits');
    assert.ok(expires - now > 590 && expires - now < 610, `it lives ${expires - now} s`);
    // No dot before the domain: not for subdomains.
    const wanted = { domain: 'notes.localhost', path: '/', httpOnly: true, secure: true, sameSite: 'Lax' };
    assert.deepEqual(attributes, wanted);
    await follow(page, () => allow(page));
    await hasLanded(page, '/mcp');
    assert.deepEqual((await context.cookies()).map((kept) => kept.value), [value], 'it is kept for a reload');
  });

  await check('the keyboard alone will do, without script', ONE, async ({ open }) => {
    const page = await (await open({ javaScriptEnabled: false })).newPage();
    await page.goto(start(NOTES, '/mcp'));
    await page.keyboard.press('Tab');
    const focused = await page.evaluate(() => {
      const { outlineStyle, outlineWidth } = getComputedStyle(document.activeElement);
      return { text: document.activeElement.textContent, outlineStyle, outlineWidth };
    });
    assert.equal(focused.text, 'Connect');
    assert.ok(focused.outlineStyle !== 'none' && parseFloat(focused.outlineWidth) >= 2, 'one sees where one is');
    await follow(page, () => page.keyboard.press('Enter'));
    isAtServer(page);
    await page.keyboard.press('Tab');
    await follow(page, () => page.keyboard.press('Enter'));
    await hasLanded(page, '/mcp');
  });

  await check('who did not say where to go on ends on the page that says so', ONE, async ({ open }) => {
    const page = await begun(await open(), undefined);
    await during('connected', async () => {
      await follow(page, () => allow(page));
      assert.equal(page.url(), start(NOTES));
      const text = await page.locator('main').innerText();
      assert.ok(text.includes('Connected. You can go back to your MCP client.'), text);
    });
  });

  await check('who cancels goes on where they came from, and nothing began', NOTHING, async ({ open }) => {
    const page = await (await open()).newPage();
    await page.goto(start(NOTES, '/mcp?tab=1'));
    await follow(page, () => page.getByRole('link', { name: 'Cancel' }).click());
    assert.equal(page.url(), `${NOTES}/mcp?tab=1`);
  });

  await check('to disconnect takes a second press, without script', DISCONNECTED, async ({ open }) => {
    const page = await (await open({ javaScriptEnabled: false })).newPage();
    await during('connected', () => page.goto(start(ACME)));
    const sure = page.getByRole('button', { name: 'Yes, disconnect' });
    assert.equal(await sure.isVisible(), false, 'it asks first');
    // Connect again, then Disconnect.
    await page.keyboard.press('Tab');
    await page.keyboard.press('Tab');
    await page.keyboard.press('Enter');
    assert.ok(await sure.isVisible());
    const asked = await page.locator('details').innerText();
    assert.ok(asked.includes('Disconnect Pomerium MCP Proxy - acme.localhost?'), asked);
    await page.keyboard.press('Tab');
    await follow(page, () => page.keyboard.press('Enter'));
    assert.equal(page.url(), start(ACME));
    assert.equal(await heading(page), 'Connect Pomerium MCP Proxy - acme.localhost?');
  });

  await check('who presses twice since nothing happens comes back', OTHER_BEGUN, async ({ open }) => {
    const page = await (await open()).newPage();
    await page.goto(start(NOTES, '/mcp'));
    const { x, y } = await page.getByRole('button', { name: 'Connect', exact: true }).boundingBox();
    const { begins } = await counts();
    await follow(page, () => during('hangs', async () => {
      for (const wanted of [begins + 1, begins + 2]) {
        // A button of Playwright's would wait for the page that is on its way.
        await page.mouse.click(x + 9, y + 9);
        await until('it begins', async () => (await counts()).begins === wanted);
      }
    }));
    isAtServer(page);
    await follow(page, () => allow(page));
    await hasLanded(page, '/mcp');
  });

  await check('the callback again is told so, and leads on', AGAIN, async ({ open }) => {
    const page = await begun(await open(), '/mcp?from=again');
    const callback = page.waitForRequest((request) => new URL(request.url()).pathname === CALLBACK);
    await follow(page, () => allow(page));
    await hasLanded(page, '/mcp?from=again');
    await isRefused(page, await page.goto((await callback).url()), 409, 'Already used');
    await follow(page, () => goOn(page));
    await hasLanded(page, '/mcp?from=again');
  });

  await check('back at the server, to allow again is told so', AGAIN, async ({ open }) => {
    const page = await begun(await open(), '/mcp');
    await follow(page, () => allow(page));
    await page.goBack();
    isAtServer(page);
    await isRefused(page, await follow(page, () => allow(page)), 409, 'Already used');
    await follow(page, () => goOn(page));
    await hasLanded(page, '/mcp');
  });

  await check('another browser cannot finish it, and its own still can', OTHER_BEGUN, async ({ open }) => {
    const page = await begun(await open(), '/mcp');
    const callback = await wayBack(page);
    const stranger = await (await open()).newPage();
    await isRefused(stranger, await stranger.goto(callback), 400, 'Not connected');
    // Nor with a flow of its own.
    const other = await begun(await open(), '/mcp');
    await isRefused(other, await other.goto(callback), 400, 'Not connected');
    assert.equal((await page.goto(callback)).status(), 200);
    await hasLanded(page, '/mcp');
  });

  await check('two tabs finish in crossed order', TWO, async ({ open }) => {
    const context = await open();
    const first = await begun(context, '/mcp?tab=first');
    const second = await begun(context, '/mcp?tab=second');
    assert.equal((await context.cookies()).length, 2);
    await follow(second, () => allow(second));
    await hasLanded(second, '/mcp?tab=second');
    await follow(first, () => allow(first));
    await hasLanded(first, '/mcp?tab=first');
  });

  await check('two routes at once', TWO, async ({ open }) => {
    const context = await open();
    const notes = await begun(context, '/mcp');
    const tickets = await begun(context, '/mcp', TICKETS);
    await follow(notes, () => allow(notes));
    await hasLanded(notes, '/mcp');
    await follow(tickets, () => allow(tickets));
    await hasLanded(tickets, '/mcp', TICKETS);
  });

  await check('who denies is told so, and can start again', DENIED, async ({ open }) => {
    const page = await begun(await open(), '/mcp');
    await isRefused(page, await follow(page, () => deny(page)), 400, 'Not connected');
    assert.ok(!(await page.content()).includes('words of the server'), 'the server has no say in our page');
    await follow(page, () => startAgain(page));
    assert.equal(page.url(), start(NOTES, '/mcp'));
    assert.equal(await heading(page), 'Connect Pomerium MCP Proxy - notes.localhost?');
    await follow(page, () => press(page));
    isAtServer(page);
  });

  await check('the choreographer is away, and when it is back a reload finishes', ONE, async ({ open }) => {
    const page = await begun(await open(), '/mcp');
    await during('down', async () => {
      let response = await follow(page, () => allow(page));
      // The connection from before may break under the first call.
      for (let tries = 0; response.status() === 502 && tries < 5; tries += 1) {
        response = await page.reload();
      }
      await isRefused(page, response, 503, 'Something went wrong');
    });
    await until('it is back', async () => (await page.reload()).status() !== 503);
    await hasLanded(page, '/mcp');
  });
}

/** Goes to a page that presses the button of our route, and gives the answer to that. */
async function attack(page, origin) {
  const posted = page.waitForResponse((response) => response.request().method() === 'POST');
  await page.goto(`${origin}/attack`, { waitUntil: 'commit' });
  const response = await posted;
  await page.waitForURL((url) => url.pathname === START);
  return response;
}

async function runAttacks(check) {
  for (const [origin, site] of [
    [E2E_NEIGHBOUR, 'cross-site'],
    ['https://evil.example', 'cross-site'],
    [TICKETS, 'cross-site'],
    ['https://evil.notes.localhost', 'same-site'],
    [`${NOTES}:8443`, 'same-site'],
  ]) {
    const name = origin === E2E_NEIGHBOUR ? 'the authorization server' : origin;
    await check(`a form on ${name} begins nothing`, NOTHING, async ({ openAnywhere }) => {
      const context = await openAnywhere();
      const page = await context.newPage();
      const response = await attack(page, origin);
      assert.equal((await response.request().allHeaders())['sec-fetch-site'], site);
      await isRefused(page, response, 403, 'Not connected');
      assert.deepEqual(await context.cookies(), []);
    });
  }

  await check('the connect page is in no frame', NOTHING, async ({ openAnywhere }) => {
    const page = await (await openAnywhere()).newPage();
    const [frame] = await Promise.all([page.waitForEvent('requestfailed'), page.goto(`${E2E_NEIGHBOUR}/frame`)]);
    assert.equal(new URL(frame.url()).pathname, START);
    assert.equal(frame.failure().errorText, 'net::ERR_BLOCKED_BY_RESPONSE');
  });

  // It has the origin of the button.
  await check('a page of the upstream cannot press the button', NOTHING, async ({ openAnywhere }) => {
    const page = await (await openAnywhere()).newPage();
    const said = (text) => page.waitForEvent('console', (message) => message.text().includes(text));
    await Promise.all([said('Blocked script execution'), page.goto(`${NOTES}/mcp?hostile`)]);
    assert.equal(await heading(page), 'Hostile');
    await Promise.all([said('Blocked form submission'), page.getByRole('button').click()]);
    assert.equal(page.url(), `${NOTES}/mcp?hostile`);
  });
}

// ---- what the pages are like ----

/** Opens a tab on each kind of page. */
const PAGES = {
  connect: [NOTHING, 200, (context) => visit(context, start(NOTES, '/mcp'))],
  'connect-unknown-server': [NOTHING, 200, (context) => during('fails', () => visit(context, start(NOTES, '/mcp')))],
  'connect-long': [NOTHING, 200, (context) => visit(context, start(LONG, '/mcp'))],
  'connect-asked': [NOTHING, 200, (context) => during('never', () => visit(context, start(NOTES, '/mcp')))],
  'connect-named': [NOTHING, 200, (context) => during('never', () => visit(context, start(ACME, '/mcp')))],
  connected: [NOTHING, 200, (context) => during('connected', () => visit(context, start(ACME)))],
  'connected-back': [NOTHING, 200, (context) => during('connected', () => visit(context, start(NOTES, '/mcp')))],
  'connected-more': [NOTHING, 200, (context) => during('more', () => visit(context, start(ACME, '/mcp')))],
  'connected-many': [NOTHING, 200, (context) => during('many', () => visit(context, start(LONG, '/mcp')))],
  disconnecting: [NOTHING, 200, async (context) => {
    const found = await during('connected', () => visit(context, start(ACME)));
    await found.page.locator('summary').click();
    return found;
  }],
  lost: [NOTHING, 200, (context) => during('lost', () => visit(context, start(ACME, '/mcp')))],
  'refused-400-named': [NOTHING, 400, (context) => visit(context, `${ACME}${CALLBACK}?code=c&state=s`)],
  'wrong-method-405': [NOTHING, 405, (context) => visit(context, `${ACME}${DISCONNECT}`)],
  'refused-400': [NOTHING, 400, (context) => visit(context, `${NOTES}${CALLBACK}?code=c&state=s`)],
  'cross-site-403': [NOTHING, 403, async (context) => {
    const page = await context.newPage();
    return { page, response: await attack(page, E2E_NEIGHBOUR) };
  }],
  'user-unknown-403': [NOTHING, 403, (context) => visit(context, start(NAMELESS, '/mcp'))],
  'already-used-409': [AGAIN, 409, async (context) => {
    const page = await begun(context, '/mcp');
    const callback = await wayBack(page);
    await page.goto(callback);
    return visit(context, callback);
  }],
  'no-token-502': [ONE, 502, async (context) => {
    const page = await begun(context, '/mcp');
    return { page, response: await during('no-token', () => follow(page, () => allow(page))) };
  }],
  'choreographer-failed-502': [{ ...ONE, exchanges: 0 }, 502, async (context) => {
    const page = await begun(context, '/mcp');
    return { page, response: await during('fails', () => follow(page, () => allow(page))) };
  }],
  'too-many-503': [{ ...NOTHING, begins: 1 }, 503, async (context) => {
    const { page } = await visit(context, start(NOTES, '/mcp'));
    return { page, response: await during('full', () => follow(page, () => press(page))) };
  }],
  'away-503': [NOTHING, 503, async (context) => {
    const { page } = await visit(context, start(NOTES, '/mcp'));
    return during('down', async () => {
      let response = await follow(page, () => press(page));
      for (let tries = 0; response.status() === 502 && tries < 5; tries += 1) {
        await page.goto(start(NOTES, '/mcp'));
        response = await follow(page, () => press(page));
      }
      return { page, response };
    });
  }],
};

async function visit(context, url) {
  const page = await context.newPage();
  return { page, response: await page.goto(url) };
}

async function runPages(check) {
  for (const [name, [expected, status, reach]] of Object.entries(PAGES)) {
    await check(`the page ${name} is well made`, expected, async ({ open }) => {
      const { page, response } = await reach(await open());
      assert.equal(response.status(), status);
      await isWellMade(page);
      await showsFocus(page);
      await takePictures(page, name);
    });
  }
}

async function isWellMade(page) {
  const found = await page.evaluate(() => {
    const all = (selector) => document.querySelectorAll(selector).length;
    const elements = [...document.querySelectorAll('*')];
    return {
      lang: document.documentElement.lang,
      mains: all('main'),
      headings: all('h1'),
      outside: [...document.body.childNodes].filter(({ localName }) => localName !== 'main')
        .map(({ textContent }) => textContent.trim()).join(''),
      // The policy names the style's hash: another style would be there and not be in force.
      styles: [...document.styleSheets].filter((sheet) => sheet.cssRules.length > 0).length,
      scripts: document.scripts.length,
      handlers: elements.filter((element) => element.getAttributeNames().some((name) => name.startsWith('on'))).length,
      loading: all('[src], [srcset], [style], link, base, iframe, object, embed'),
      loaded: performance.getEntriesByType('resource').length,
    };
  });
  assert.deepEqual(found, {
    lang: 'en', mains: 1, headings: 1, outside: '', styles: 1, scripts: 0, handlers: 0, loading: 0, loaded: 0,
  });
  assert.ok((await heading(page)).trim() && (await page.title()).trim(), 'a heading and a title');

  for (const width of [360, 320]) {
    await page.setViewportSize({ width, height: 640 });
    const needed = await page.evaluate(() => document.documentElement.scrollWidth);
    assert.ok(needed <= width, `it needs ${needed} px of ${width}`);
  }
}

/** Whoever goes through the page by keyboard sees where they are. */
async function showsFocus(page) {
  // From the beginning, wherever somebody clicked before.
  await page.mouse.click(0, 0);
  const count = await page.locator('a[href], button:visible, summary').count();
  for (let place = 0; place < count; place += 1) {
    await page.keyboard.press('Tab');
    const { is, style, width } = await page.evaluate(() => {
      const { outlineStyle, outlineWidth } = getComputedStyle(document.activeElement);
      return { is: document.activeElement.localName, style: outlineStyle, width: parseFloat(outlineWidth) };
    });
    assert.ok(is !== 'body' && style !== 'none' && width >= 2, `${place}: ${is} ${style} ${width}`);
  }
  await page.evaluate(() => document.activeElement.blur());
}

/** As axe sees it, at what WCAG 2.2 asks for at level AA. The policy of the page does not concern what a test evaluates. */
async function isAccessible(page, where) {
  await page.evaluate(axe.source);
  const { violations, passes } = await page.evaluate(() => globalThis.axe.run({
    runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa'],
  }));
  const found = violations.flatMap(({ id, nodes }) => nodes.map(({ failureSummary, html }) => `${id}: ${html} ${failureSummary}`));
  assert.deepEqual(found, [], where);
  for (const rule of ['color-contrast', 'document-title', 'html-has-lang']) {
    assert.ok(passes.some(({ id }) => id === rule), `${where}: axe looked at ${rule}`);
  }
}

async function takePictures(page, name) {
  for (const [device, width, height] of [['desktop', 1280, 800], ['phone', 390, 844]]) {
    await page.setViewportSize({ width, height });
    for (const colorScheme of ['light', 'dark']) {
      await page.emulateMedia({ colorScheme });
      await isAccessible(page, `${name} ${device} ${colorScheme}`);
      const suffix = colorScheme === 'dark' ? '-dark' : '';
      await page.screenshot({ path: path.join(pictures, `${name}-${device}${suffix}.png`), fullPage: true });
    }
  }
}

const browser = await launch([
  `MAP other.localhost:443 127.0.0.1:${E2E_NAMELESS_PORT}`,
  `MAP acme.localhost:443 127.0.0.1:${E2E_NAMED_PORT}`,
  `MAP *:443 127.0.0.1:${E2E_ENVOY_PORT}`,
  `MAP *:8443 127.0.0.1:${E2E_ENVOY_PORT}`,
]);
const { check, finish } = scenarios(browser, { counts, origins: [...OURS, E2E_NEIGHBOUR] });
try {
  await runFlows(check);
  await runAttacks(check);
  await runPages(check);
} finally {
  await browser.close();
}
console.log(`pictures of all pages are in ${pictures}`);
finish();
