import type { FollowOptions, JobDocument, JobError } from "./client.js";

export type AsyncJobWord =
  | "connecting"
  | "pending"
  | "processing"
  | "stopping"
  | "completed"
  | "failed"
  | "cancelled"
  | "gone"
  | "refused"
  | "lost"
  | "progress"
  | "cancel"
  | "result"
  | "of"
  | "about"
  | "took"
  | "overrun"
  | "whenGone"
  | "whenRefused"
  | "whenLost"
  | "unreachable"
  | "uncancelled";

/** `<async-job status-url="…">`; importing the module defines it. */
export class AsyncJobElement extends HTMLElement {
  /** The words of all elements that are made from then on. */
  static words: Record<AsyncJobWord, string>;
  words: Record<AsyncJobWord, string>;
  /** Options of `followJob` that are no attributes, such as `headers`; set them before the URL. */
  options: Omit<FollowOptions, "signal" | "onUpdate">;
  statusUrl: string | null;
  /** The newest document. */
  readonly job: JobDocument | null;
  /** Ask the job to stop; if that fails, the element shows it. */
  cancel(): Promise<void>;
}

declare global {
  interface HTMLElementTagNameMap {
    "async-job": AsyncJobElement;
  }
  interface HTMLElementEventMap {
    "job-update": CustomEvent<JobDocument>;
    "job-end": CustomEvent<JobDocument>;
    "job-error": CustomEvent<JobError>;
  }
}
