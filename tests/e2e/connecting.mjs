// A person who connects a route at oidc-provider: what the scripts share that go there.

import assert from 'node:assert/strict';

import { START, follow, heading, press, start } from './person.mjs';
import { LOGIN } from './walker.mjs';

export const consent = (page) => page.getByRole('button', { name: 'Continue' }).click();
export const cancel = (page) => page.getByRole('link', { name: '[ Cancel ]' }).click();

async function signIn(page) {
  assert.equal(await heading(page), 'Sign-in');
  await page.getByPlaceholder('Enter any login').fill(LOGIN);
  await page.getByPlaceholder('and password').fill('anything');
  await follow(page, () => page.getByRole('button', { name: 'Sign-in' }).click());
}

function isAtServer(page, issuer) {
  const url = new URL(page.url());
  assert.equal(url.origin, issuer);
  assert.match(url.pathname, /^\/interaction\//);
}

/** A tab on the page of this issuer that asks for consent. */
export async function begun(context, origin, returnTo, issuer) {
  const page = await context.newPage();
  const shown = await page.goto(start(origin, returnTo));
  assert.equal(shown.status(), 200);
  await follow(page, () => press(page));
  if (new URL(page.url()).pathname === START) {
    // The look-up took longer than the first page waited: this one names the server.
    await follow(page, () => press(page));
  }
  isAtServer(page, issuer);
  await signIn(page);
  isAtServer(page, issuer);
  assert.equal(await heading(page), 'Authorize');
  return page;
}
