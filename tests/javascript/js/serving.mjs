// A real server with scripted answers.
import { createServer } from "node:http";

export const job = (status, version, more = {}) => ({
  jobId: "job_1",
  status,
  version,
  progress: version,
  retryAfter: status === "processing" ? 1 : null,
  ...more,
});

export const json = (document, status = 200, headers = {}) => (_, answer) => {
  answer.writeHead(status, { "content-type": "application/json", ...headers });
  answer.end(JSON.stringify(document));
};

export const text = (body, type = "text/html", status = 200) => (_, answer) => {
  answer.writeHead(status, { "content-type": type });
  answer.end(body);
};

export const redirect = (to) => (_, answer) => {
  answer.writeHead(302, { location: to });
  answer.end();
};

export const drop = (request) => request.socket.destroy();
export const never = () => {};

/** Serve the answers in order; the last one is repeated. */
export const serving = async (context, ...answers) => {
  const requests = [];
  const server = createServer(async (request, answer) => {
    const chunks = [];
    for await (const chunk of request) chunks.push(chunk);
    const { method, url, headers } = request;
    requests.push({ method, url, headers, body: Buffer.concat(chunks).toString() });
    (answers.length > 1 ? answers.shift() : answers[0])(request, answer);
  });
  await new Promise((done) => server.listen(0, "127.0.0.1", done));
  context.after(() => {
    server.close();
    server.closeAllConnections();
  });
  return { origin: `http://127.0.0.1:${server.address().port}`, requests };
};
