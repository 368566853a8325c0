/**
 * `pending` and `processing` go on; the others are terminal. A newer server may end a job with a
 * status that is not in this list; `isTerminal` is true for it.
 */
export type JobStatus = "pending" | "processing" | "completed" | "failed" | "cancelled";

/** How far the work is, in the handler's own words and figures. */
export interface JobDetail {
  message: string | null;
  current: number | null;
  total: number | null;
  unit: string | null;
}

/** The jobs of a batch by status, and the first that failed. */
export interface JobBatch {
  total: number;
  pending: number;
  processing: number;
  completed: number;
  failed: number;
  cancelled: number;
  failures: { jobId: string; error: string; errorCode: string }[];
}

/** A file that a job has saved; `url` is its download. */
export interface JobFile {
  name: string;
  /** In bytes. */
  size: number;
  mediaType: string;
  url: string;
}

/** The status document. Times are ISO 8601 in UTC, durations are seconds. */
export interface JobDocument<Result = unknown> {
  jobId: string;
  type: string;
  /** What people see; the handler may change it. */
  title: string | null;
  status: JobStatus;
  /** Whole percent. */
  progress: number;
  detail: JobDetail | null;
  /** `null` before completion. */
  result: Result | null;
  error: string | null;
  errorCode: string | null;
  attempt: number;
  createdAt: string;
  startedAt: string | null;
  completedAt: string | null;
  cancelRequestedAt: string | null;
  /** What the job has saved; absent if there is none. */
  files?: JobFile[];
  /** Only of a batch. */
  batch?: JobBatch;
  /** The batch to which the job belongs. */
  batchId?: string;
  estimatedDuration: number | null;
  traceId: string;
  tags: string[];
  metadata: Record<string, unknown>;
  /** Grows with each change. */
  version: number;
  retryAfter: number | null;
  position: number | null;
}

/** A job in a list. */
export interface ListedJob {
  jobId: string;
  statusUrl: string;
  type: string;
  title: string | null;
  status: JobStatus;
  /** Whole percent. */
  progress: number;
  error: string | null;
  createdAt: string;
  startedAt: string | null;
  completedAt: string | null;
  /** The batch to which the job belongs. */
  batchId?: string;
  tags: string[];
  metadata: Record<string, unknown>;
}

/** How to ask; each is given to `fetch`. */
export interface RequestOptions {
  /** Sent along with each request. A stream of events cannot send any, so none is used then. */
  headers?: Record<string, string>;
  /** `"include"` sends cookies to another origin, too, with events as with requests. */
  credentials?: RequestCredentials;
  signal?: AbortSignal;
}

/** What to begin with; the ways after it are fallbacks. */
export type Transport = "socket" | "events" | "wait" | "poll";

export interface FollowOptions<Result = unknown> extends RequestOptions {
  /** Called with each document that is newer than all before; what it throws ends the following. */
  onUpdate?: (document: JobDocument<Result>) => void;
  /** Milliseconds after which to give up, with the code `timeout`. A day unless given. */
  timeout?: number;
  /** `"events"` unless given. */
  transport?: Transport;
  /** Go on while the tab is hidden. */
  background?: boolean;
  /** Remember the job in localStorage until its end was seen, for `resumeJobs`. */
  keep?: boolean;
  /** Where the job's WebSocket is, if not where the server's own rule puts it. */
  socketUrl?: string;
  /** The `token` of the 202, if the job is given by its URL. It is renewed before it ends. */
  token?: string;
  /** The `tokenUrl` of the 202; `/token` below the status URL unless given. */
  tokenUrl?: string;
  /** The `tokenExpiresAt` of the 202, by which an older token is renewed in time. */
  tokenExpiresAt?: string;
}

/** Which of the caller's own jobs: all of them unless given. */
export interface JobSelection {
  tag?: string;
  /** The id of a batch, whose jobs are followed; not with a tag. */
  batch?: string;
  /** Whether jobs that belong to a batch are in the list. They are not unless given. */
  members?: boolean;
  type?: string;
  status?: JobStatus;
  /** How many of the newest, up to 100. 20 unless given. */
  limit?: number;
}

export interface FollowJobsOptions extends RequestOptions, JobSelection {
  /** A token for the jobs with the tag. It is renewed before it ends. */
  token?: string;
  /** Where the list is: `/api/jobs` unless given. */
  prefix?: string | URL;
  /** Called with each list that differs from the one before; what it throws ends the following. */
  onUpdate?: (jobs: ListedJob[]) => void;
  /** `"events"` unless given. */
  transport?: "events" | "poll";
  /** Go on while the tab is hidden. */
  background?: boolean;
}

/** Items that arrived together; `offset` is that after the last of them. */
export interface OutputPortion<Item = unknown> {
  items: Item[];
  /** Where to go on later: the option `offset`. */
  offset: string;
  /** The number of the attempt that emitted the items; a retry of the job begins a new one. */
  epoch: number;
}

export interface FollowOutputOptions<Item = unknown> extends RequestOptions {
  /** The name of a stream; `output` unless given. */
  stream?: string;
  /** Begin after the items that this offset follows; with the first item unless given. */
  offset?: string;
  /** Called with the items of each portion; what it throws ends the following. */
  onItems?: (items: Item[], portion: OutputPortion<Item>) => void;
  /** Milliseconds after which to give up, with the code `timeout`. A day unless given. */
  timeout?: number;
  /** `"events"` unless given; then `"wait"`, if events do not come through. */
  transport?: "events" | "wait";
  /** Go on while the tab is hidden. */
  background?: boolean;
  /** The `token` of the 202, if the job is given by its URL. It is renewed before it ends. */
  token?: string;
  /** The `tokenUrl` of the 202; `/token` below the status URL unless given. */
  tokenUrl?: string;
  /** The `tokenExpiresAt` of the 202, by which an older token is renewed in time. */
  tokenExpiresAt?: string;
}

export interface SubmitOptions extends RequestOptions {
  /** One for each thing that the user wants once. A random one unless given, for own retries. */
  idempotencyKey?: string;
  /** Milliseconds after which to give up. A minute unless given. */
  timeout?: number;
}

export interface CancelOptions extends RequestOptions {
  /** A token of the job. */
  token?: string | null;
  /** Milliseconds after which to give up. A minute unless given. */
  timeout?: number;
}

/** A job as it was accepted. */
export interface Submitted<Result = unknown> {
  jobId: string;
  /** Absolute; `null` where a server answered by the end itself and CORS hides the rest. */
  statusUrl: string | null;
  /** Opens the job for some minutes, if the server gives tokens; else `null`. */
  token: string | null;
  /** Where the token is renewed. */
  tokenUrl: string | null;
  /** When the token ends, unless it is renewed before; `null` without one. */
  tokenExpiresAt: string | null;
  /** For how many seconds the server is not to be polled; 0 where CORS hides it. */
  retryAfter: number;
  /** The final document, where the server waited for the end, else `null`. */
  document: JobDocument<Result> | null;
}

/**
 * Where a job is: its status URL, or what `submitJob` returned.
 */
export type JobTarget<Result = unknown> =
  | string
  | URL
  | (Pick<Submitted, "statusUrl"> & Partial<Submitted<Result>>);

/**
 * The final document to come, of whichever terminal status. Iterated, it yields the newest document
 * each time there is a newer one, and at last the final one; leaving the loop ends the following.
 */
export interface Following<Result = unknown>
  extends Promise<JobDocument<Result>>,
    AsyncIterable<JobDocument<Result>> {
  /** Ask the job to stop; its new document is an update at once. */
  cancel(): Promise<JobDocument<Result>>;
  /** The token that opens the job now; `null` without one. */
  readonly token: string | null;
}

/**
 * The offset and epoch of the end to come. Iterated, it yields the portions, unless there is an
 * `onItems`; leaving the loop ends the following.
 */
export interface FollowingOutput<Item = unknown>
  extends Promise<Omit<OutputPortion, "items">>,
    AsyncIterable<OutputPortion<Item>> {
  /** The token that opens the job now; `null` without one. */
  readonly token: string | null;
}

/**
 * `invalid_url`, `not_a_job` (an answer that is no job's document), `not_a_stream` (one that is no output), `unknown_status` (of a newer
 * server, before the job's end), `redirect_loop`, `timeout`, `job_not_found`, `refused` (without a
 * reason), or the code of the server's own problem.
 */
export type JobErrorCode =
  | "invalid_url"
  | "not_a_job"
  | "not_a_stream"
  | "unknown_status"
  | "redirect_loop"
  | "timeout"
  | "job_not_found"
  | "refused"
  | (string & {});

/** Why a job cannot be submitted, followed or cancelled. A job that fails is no such error. */
export class JobError extends Error {
  constructor(
    code: JobErrorCode,
    message: string,
    about?: Partial<Pick<JobError, "url" | "status" | "received" | "document">>,
  );
  readonly name: "JobError";
  readonly code: JobErrorCode;
  readonly url: string;
  /** The status of the answer; 0 where there was none. */
  readonly status: number;
  /** The answer's type and the beginning of its body. */
  readonly received: string;
  /** The last document that was seen. */
  readonly document: JobDocument | null;
}

export function isTerminal(
  document: Pick<JobDocument, "status"> & Partial<Pick<JobDocument, "completedAt">>,
): boolean;

/** Follow a job to its end. Rejects with a `JobError`, or with the signal's reason. */
export function followJob<Result = unknown>(
  job: JobTarget<Result>,
  options?: FollowOptions<Result>,
): Following<Result>;

/** The same by a WebSocket, and by the other ways where there is none. */
export function followJobWs<Result = unknown>(
  job: JobTarget<Result>,
  options?: Omit<FollowOptions<Result>, "transport">,
): Following<Result>;

/**
 * Rejects with a `JobError`, or with the signal's reason; it has no end of its own. Iterated, it
 * yields the newest list each time it has changed; leaving the loop ends the following.
 */
export interface FollowingJobs extends Promise<never>, AsyncIterable<ListedJob[]> {}

/** Follow a list of the caller's own jobs, the newest first. */
export function followJobs(options?: FollowJobsOptions): FollowingJobs;

/**
 * Follow a stream of a job's output to its end: JSON values, strings, or `Uint8Array`s. Rejects with
 * a `JobError`, or with the signal's reason.
 */
export function followOutput<Item = unknown>(
  job: JobTarget,
  options?: FollowOutputOptions<Item>,
): FollowingOutput<Item>;

/** Submit a job by POST, as JSON; it is one job however often it had to be sent. */
export function submitJob<Result = unknown>(
  url: string | URL,
  body?: unknown,
  options?: SubmitOptions,
): Promise<Submitted<Result>>;

/** Ask a job to stop; the document tells whether it has. */
export function cancelJob<Result = unknown>(
  statusUrl: string | URL,
  options?: CancelOptions,
): Promise<JobDocument<Result>>;

/** Follow all that was followed with `keep` and has not been seen to end, by status URL. */
export function resumeJobs<Result = unknown>(
  options?: Omit<FollowOptions<Result>, "keep">,
): Map<string, Following<Result>>;
