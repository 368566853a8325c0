import type { FollowJobsOptions, FollowOptions, FollowOutputOptions, JobDocument, JobSelection, ListedJob, Submitted } from "./client.js";

export interface UseAsyncJobOptions<Result = unknown> extends Omit<FollowOptions<Result>, "signal"> {
  /** Where ids are looked up: `/api/jobs` unless given. */
  prefix?: string;
}

export interface AsyncJobState<Result = unknown> {
  /** The newest document. */
  job: JobDocument<Result> | null;
  /** There is a job, and its end is not known yet. */
  isLoading: boolean;
  isComplete: boolean;
  /** The job failed, or cannot be followed. */
  isFailed: boolean;
  isCancelled: boolean;
  /** Whole percent. */
  progress: number;
  message: string | undefined;
  /** Only once `isComplete`. */
  result: Result | undefined;
  /** Why it failed, as a sentence. */
  error: string | undefined;
  /** Ask the job to stop; rejects with a `JobError` if that cannot be done. */
  cancel: () => Promise<void>;
}

/** An id, a status URL, what `submitJob` returned, or `null` as long as there is no job. */
export type AsyncJobTarget =
  | string
  | URL
  | (Pick<Submitted, "statusUrl"> & Partial<Submitted>)
  | null
  | undefined;

/**
 * Follow a job from the first render with one to its end, by events, blocking reads or polling.
 * Options are read when the following begins; it begins anew when the job changes.
 */
export function useAsyncJob<Result = unknown>(
  job: AsyncJobTarget,
  options?: UseAsyncJobOptions<Result>,
): AsyncJobState<Result>;

/** The same by a WebSocket, and by the other ways where there is none. */
export function useAsyncJobWs<Result = unknown>(
  job: AsyncJobTarget,
  options?: Omit<UseAsyncJobOptions<Result>, "transport">,
): AsyncJobState<Result>;

export interface JobsState {
  /** The jobs, the newest first; empty until the first answer. */
  jobs: ListedJob[];
  /** There is no answer yet. */
  isLoading: boolean;
  /** Why the list cannot be followed, as a sentence; the jobs are the last known then. */
  error: string | undefined;
}

/**
 * Follow a list of the caller's own jobs, such as `{ tag: "customer:42" }`; `null` follows none.
 * Options are read when the following begins; it begins anew when the selection changes.
 */
export function useJobs(
  selection?: JobSelection | null,
  options?: Omit<FollowJobsOptions, "signal" | keyof JobSelection>,
): JobsState;

export interface UseJobOutputOptions<Item = unknown> extends Omit<FollowOutputOptions<Item>, "signal" | "offset"> {
  /** Where ids are looked up: `/api/jobs` unless given. */
  prefix?: string;
  /** Milliseconds between two renders. 50 unless given. */
  throttle?: number;
  /**
   * Keep what was received in sessionStorage, up to half a megabyte of JSON, so that a reload goes
   * on from there. True unless given. Without it, and for bytes, a reload reads from the start.
   */
  keep?: boolean;
  /** Show only the items of the job's last attempt, which is the default, or those of all. */
  attempts?: "last" | "all";
}

export interface JobOutputState<Item = unknown> {
  /** What was received, in order. */
  items: Item[];
  /** The strings among the items, joined: all of a text stream. */
  text: string;
  /** The attempt that emitted the last item; 0 before the first. */
  epoch: number;
  /** There is a job, and its output may grow. */
  isLoading: boolean;
  /** All was received, however the job ended. */
  isComplete: boolean;
  /** Why the output cannot be followed, as a sentence. */
  error: string | undefined;
}

/**
 * Follow a stream of a job's output from the first render with a job to its end. Each item is there
 * once, also after a reload. Options are read when the following begins; it begins anew when the
 * job, the stream or `attempts` changes.
 */
export function useJobOutput<Item = unknown>(
  job: AsyncJobTarget,
  options?: UseJobOutputOptions<Item>,
): JobOutputState<Item>;
