// A person without a browser: opens links, signs in and allows what is asked. It takes a tenth of a second, where what
// a page looks like does not matter.

import assert from 'node:assert/strict';

import { Agent, buildConnector, request } from 'undici';

/** Who signs in; any name would do. */
export const LOGIN = 'somebody';

/** More pages than that are a circle. */
const MOST_PAGES = 8;

/** A person with cookies of their own. What has no port in its address is at 127.0.0.1:`port`, all else on its port. */
export function walker({ port }) {
  // Whether a certificate is trusted is the client's business, and tested elsewhere.
  const connector = buildConnector({ rejectUnauthorized: false });
  const dispatcher = new Agent({
    connect: (asked, done) => connector({
      ...asked, hostname: '127.0.0.1', host: '127.0.0.1', port: asked.port || port, servername: asked.hostname,
    }, done),
  });
  const cookies = new Map();

  function keep(host, lines) {
    for (const line of lines) {
      const [, name, value] = /^([^=]+)=([^;]*)/.exec(line);
      if (value && !/expires=Thu, 01 Jan 1970/i.test(line)) {
        cookies.set(`${host} ${name}`, `${name}=${value}`);
      } else {
        cookies.delete(`${host} ${name}`);
      }
    }
  }

  /** Goes where the answers lead; the page in the end. */
  async function go(url, form) {
    const { hostname, origin } = url;
    const own = [...cookies].filter(([key]) => key.startsWith(`${hostname} `)).map(([, pair]) => pair);
    const answer = await request(url, {
      dispatcher,
      method: form ? 'POST' : 'GET',
      headers: {
        accept: 'text/html',
        ...own.length > 0 && { cookie: own.join('; ') },
        ...form && { origin, 'content-type': 'application/x-www-form-urlencoded' },
      },
      body: form?.toString(),
    });
    keep(hostname, [answer.headers['set-cookie'] ?? []].flat());
    const html = await answer.body.text();
    const { headers: { location }, statusCode: status } = answer;
    return location ? go(new URL(location, url)) : { url, status, html };
  }

  const open = (link) => go(new URL(link));

  /** Sends the first form of a page whose address has these words, filled in. */
  function press({ url, html }, words = '') {
    const forms = [...html.matchAll(/<form [^>]*>.*?<\/form>/gs)].map(([form]) => form);
    const form = forms.find((text) => attribute(text, 'action').includes(words));
    assert.ok(form, `a form to send on ${url}: ${html}`);
    const inputs = [...form.matchAll(/<input [^>]*>/g)].map(([input]) => input);
    const fields = inputs.map((input) => [attribute(input, 'name'), attribute(input, 'value') || LOGIN]);
    // What is pressed is sent too where it has a name.
    const buttons = [...form.matchAll(/<button[^>]* name=[^>]*>/g)].map(([button]) => button);
    const button = buttons.find((text) => !/deny|cancel|reject/.test(attribute(text, 'value')));
    if (button) {
      fields.push([attribute(button, 'name'), attribute(button, 'value')]);
    }
    return go(new URL(attribute(form, 'action'), url), new URLSearchParams(fields));
  }

  /** Connects where a link leads; it is opened as it stands. */
  async function connect(link) {
    let page = await open(link);
    for (let pages = 1; !isConnected(page); pages += 1) {
      assert.ok(pages < MOST_PAGES && page.status === 200, `not connected at ${page.url}: ${page.html}`);
      page = await press(page);
    }
  }

  /** Disconnects there. */
  async function disconnect(link) {
    const page = await press(await open(link), '/disconnect');
    assert.ok(page.status === 200 && !isConnected(page), page.html);
  }

  return { connect, disconnect, close: () => dispatcher.close() };
}

const isConnected = ({ status, html }) => status === 200 && html.includes('<strong>Connected.</strong>');

const attribute = (tag, name) =>
  new RegExp(` ${name}="([^"]*)"`).exec(tag)?.[1].replaceAll('&#38;', '&').replaceAll('&amp;', '&') ?? '';
