// The service's routes. A key, if one is needed, is kept for this tab alone.

const KEY = "warpcache-key";
const RECONNECT_MS = 1000;

export const key = {
  get: () => sessionStorage.getItem(KEY),
  set: (value) => sessionStorage.setItem(KEY, value),
  forget: () => sessionStorage.removeItem(KEY),
};

// What the service refused: its message, the field that it names, its code.
export class Refused extends Error {
  constructor(status, error) {
    super(error.message);
    this.status = status;
    this.param = error.param;
    this.code = error.code;
  }
}

let askForKey = async () => false;

// `ask` shows why a key is needed, and resolves to true once there is another one.
export function onUnauthorized(ask) {
  askForKey = ask;
}

// The answer; asks for a key as long as it is refused for want of one.
export async function call(path, options = {}) {
  const headers = { ...options.headers };
  if (key.get()) headers["x-api-key"] = key.get();
  const answer = await fetch(path, { ...options, headers });
  if (answer.status === 401) {
    const { error } = await answer.json();
    if (await askForKey(error.message)) return call(path, options);
    throw new Refused(401, error);
  }
  if (!answer.ok) throw await refusal(answer);
  return answer;
}

async function refusal(answer) {
  const said = { message: `The service answered ${answer.status}.`, param: null, code: null };
  const { error } = await answer.json().catch(() => ({}));
  return new Refused(answer.status, error ?? said);
}

export const get = async (path) => (await call(path)).json();

export const post = async (path, body, headers = {}) =>
  (await call(path, {
    method: "POST",
    headers: { "content-type": "application/json", ...headers },
    body: JSON.stringify(body),
  })).json();

export const cancel = async (id) => (await call(`jobs/${id}`, { method: "DELETE" })).json();

// A URL for the job's video. A media element sends no key, so with one the file is fetched first.
export async function videoUrl(job) {
  if (!key.get()) return job.video;
  const answer = await call(job.video);
  return URL.createObjectURL(await answer.blob());
}

// What happens to a job, from its first event to its last: [kind, data]. EventSource sends no key, so this is a stream
// that is read by hand, and taken up where it broke off.
export async function* events(id, signal) {
  let last = null;
  for (;;) {
    try {
      const headers = last ? { "last-event-id": last } : {};
      const answer = await call(`jobs/${id}/events`, { headers, signal });
      if (answer.status === 204) return;
      for await (const event of read(answer.body)) {
        last = event.id ?? last;
        yield [event.kind, event.data];
        if (["succeeded", "failed", "cancelled"].includes(event.kind)) return;
      }
    } catch (error) {
      if (signal.aborted || (error instanceof Refused && error.status < 500)) throw error;
    }
    await new Promise((resolve) => setTimeout(resolve, RECONNECT_MS));
  }
}

async function* read(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const event = parse(block);
      if (event) yield event;
    }
  }
}

function parse(block) {
  const fields = Object.fromEntries(
    block.split("\n").map((line) => [line.slice(0, line.indexOf(":")), line.slice(line.indexOf(":") + 2)]),
  );
  return fields.data ? { id: fields.id, kind: fields.event, data: JSON.parse(fields.data) } : null;
}
