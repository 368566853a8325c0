// Follows jobs with @azure/core-lro, and prints their outcomes.
import { createHttpPoller } from "@azure/core-lro";

const base = process.argv[2];

async function send(method, path, options = {}) {
  const url = new URL(path, base).href;
  const response = await fetch(url, { method, ...options });
  const body = await response.json();
  const rawResponse = {
    statusCode: response.status,
    request: { method, url },
    headers: Object.fromEntries(response.headers),
    body,
  };
  // The pipelines of Azure's own clients throw such errors.
  if (response.status >= 400) {
    throw Object.assign(new Error(body.error), { name: "RestError", code: body.code });
  }
  return { flatResponse: body, rawResponse };
}

async function submit(kind, withoutOperation) {
  const response = await send("POST", `/${kind}`, {
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ count: 21, name: `lro ${withoutOperation}` }),
  });
  if (withoutOperation) delete response.rawResponse.headers["operation-location"];
  if (kind === "gate") await send("POST", response.flatResponse.cancelUrl);
  return response;
}

async function follow(kind, withoutOperation) {
  const polls = [];
  const poller = createHttpPoller(
    {
      sendInitialRequest: () => submit(kind, withoutOperation),
      sendPollRequest: (path) => {
        polls.push(new URL(path, base).pathname.split("/").at(-1));
        return send("GET", path);
      },
    },
    // Far too long for the test: the server's Retry-After applies.
    { intervalInMs: 60_000 },
  );
  try {
    return { polls, result: await poller.pollUntilDone() };
  } catch (error) {
    return { polls, error: error.message, code: error.code, status: poller.operationState.status };
  }
}

const kinds = ["double", "full", "gate"];
const ended = {};
await Promise.all(
  kinds.flatMap((kind) =>
    [false, true].map(async (withoutOperation) => {
      const mode = withoutOperation ? "location" : "operation";
      ended[`${kind} ${mode}`] = await follow(kind, withoutOperation);
    }),
  ),
);
console.log(JSON.stringify(ended));
