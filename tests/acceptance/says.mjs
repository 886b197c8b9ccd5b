// How a server here says that it is ready.

/** Listens on a port of its own, and says which. */
export function says(server) {
  server.listen(0, '127.0.0.1', () => announce(server.address().port));
}

export const announce = (port) => console.log(JSON.stringify({ listens: port }));
