// Verify a token as another service would, with jose: node verify.mjs TOKEN SECRET SECONDS
import { decodeProtectedHeader, errors, jwtVerify } from "jose";

const [token, secret, seconds] = process.argv.slice(2);
const key = new TextEncoder().encode(secret);
const terms = { algorithms: ["HS256"], issuer: "asyncjobs", audience: "asyncjobs", currentDate: new Date(seconds * 1000) };
try {
  const { payload } = await jwtVerify(token, key, terms);
  console.log(JSON.stringify({ header: decodeProtectedHeader(token), payload }));
} catch (error) {
  if (!(error instanceof errors.JOSEError)) throw error;
  console.log(JSON.stringify({ error: error.code }));
}
