import type { FollowJobsOptions, FollowOptions, JobDocument, JobSelection, ListedJob, Submitted } from "./client.js";

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
