// The proxy through which servers get out, as in many companies (HTTP CONNECT): to Envoy for its routes, to the other
// servers of this run, and nowhere else. What goes through is TLS from end to end.

import { once } from 'node:events';
import http from 'node:http';
import net from 'node:net';

export async function egress({ envoyPort }) {
  const server = http.createServer((_request, response) => response.writeHead(405).end());
  server.on('connect', ({ url }, socket, head) => {
    const [host, port] = url.split(':');
    const isRoute = host.endsWith('.gateway.example') && port === '443';
    if (!isRoute && host !== 'localhost') {
      socket.end('HTTP/1.1 403 Forbidden\r\n\r\n');
      return;
    }
    const onward = net.connect(isRoute ? envoyPort : Number(port), '127.0.0.1', () => {
      socket.write('HTTP/1.1 200 Connection Established\r\n\r\n');
      onward.write(head);
      onward.pipe(socket).pipe(onward);
    });
    for (const end of [socket, onward]) {
      end.on('error', () => { socket.destroy(); onward.destroy(); });
    }
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  return { origin: `http://127.0.0.1:${server.address().port}` };
}
