// Leads connections to the authorization servers' ports on this container's loopback on to their containers.

import net from 'node:net';

for (const [name, port] of [['notes', 9443], ['tickets', 9444]]) {
  net.createServer((from) => {
    const to = net.connect(port, name);
    from.pipe(to).pipe(from);
    // Where one end is gone, so is the other.
    from.on('error', () => to.destroy()).on('close', () => to.destroy());
    to.on('error', () => from.destroy()).on('close', () => from.destroy());
  }).listen(port, '127.0.0.1');
}
