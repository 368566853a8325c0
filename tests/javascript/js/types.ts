// Uses of the declarations in TypeScript; the compiler is the test.
import {
  followJob,
  followJobs,
  followJobWs,
  followOutput,
  JobError,
  resumeJobs,
  submitJob,
  type JobDocument,
  type ListedJob,
} from "./client/client.js";
import { AsyncJobElement } from "./client/element.js";
import { useAsyncJob, useAsyncJobWs, useJobOutput, useJobs } from "./client/react.js";

interface ExportResult {
  download_url: string;
}

export async function follow(signal: AbortSignal): Promise<string | undefined> {
  const submitted = await submitJob<ExportResult>("/api/exports", { format: "csv" });
  const following = followJob(submitted, { signal, onUpdate: (job) => job.result?.download_url.trim() });
  for await (const job of following) job.progress.toFixed();
  const end: JobDocument<ExportResult> = await following.cancel();
  for (const [url, kept] of resumeJobs<number>()) url.trim() && ((await kept).result ?? 0).toFixed();
  return end.result?.download_url;
}

export function Hook({ id }: { id: string | null }): string {
  const { isLoading, result, error, progress, cancel } = useAsyncJob<ExportResult>(id, { keep: true });
  const live = useAsyncJobWs<number>(id);
  void cancel();
  live.job?.detail?.current?.toFixed();
  return isLoading ? `${progress} ${live.result?.toFixed()}` : (result?.download_url ?? error ?? "");
}

export function listen(element: HTMLElementTagNameMap["async-job"]): void {
  element.addEventListener("job-end", ({ detail }) => detail.status);
  element.addEventListener("job-error", ({ detail }) => detail.code);
  element.words.cancel = AsyncJobElement.words.cancel;
  const error = new JobError("timeout", "late", { url: "/" });
  // @ts-expect-error: it is read only
  error.status = 3;
  // @ts-expect-error: no such transport
  followJob("/", { transport: "pigeon" });
  // @ts-expect-error: the transport is always the socket
  followJobWs("/", { transport: "poll" });
}

export async function list(signal: AbortSignal): Promise<ListedJob[]> {
  const following = followJobs({ tag: "customer:42", limit: 100, signal, onUpdate: (jobs) => jobs.map(({ title }) => title?.trim()) });
  for await (const jobs of following) return jobs.filter(({ tags, metadata }) => tags.includes("a") && metadata.file);
  // @ts-expect-error: a list has no result
  (await following).trim();
  // @ts-expect-error: no such status
  followJobs({ status: "done" });
  return [];
}

export function Jobs(): string {
  const { jobs, isLoading, error } = useJobs({ tag: "customer:42", members: true }, { prefix: "/api/jobs", background: true });
  useJobs();
  useJobs(null);
  return isLoading ? "" : (error ?? jobs.map((job) => job.title ?? job.type).join());
}

export async function read(offset: string): Promise<string> {
  const options = { stream: "log", offset, onItems: (items: string[], { epoch }: { epoch: number }) => items.join() + epoch };
  const end = await followOutput<string>("/api/jobs/job_1", options);
  for await (const { items, offset } of followOutput<{ n: number }>("/")) items[0]?.n.toFixed() && offset.trim();
  // @ts-expect-error: output has no result
  (await followOutput("/")).result;
  return end.offset;
}

export function Output({ id }: { id: string | null }): string {
  const { items, text, isLoading, error } = useJobOutput<{ n: number }>(id, { stream: "rows", throttle: 16, attempts: "all" });
  // @ts-expect-error: no such choice
  useJobOutput(id, { attempts: "first" });
  return isLoading ? text : (error ?? items.map(({ n }) => n).join());
}
