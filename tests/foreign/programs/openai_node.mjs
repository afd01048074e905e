// openai-node: completions, chat, the stream helper, errors, responses.
import assert from "node:assert/strict";
import { createRequire } from "node:module";

const OpenAI = createRequire(`${process.env.MODULES}/`)("openai").default;
const client = new OpenAI({ baseURL: `${process.argv[2]}/v1`, apiKey: "EMPTY", maxRetries: 0 });
const common = { model: "demo", temperature: 0 };
const question = "What is the capital of France? Answer with one word."; // the demo model ends its answer by itself
const messages = [{ role: "user", content: question }];

const completion = await client.completions.create({ ...common, prompt: "The capital of France is", max_tokens: 4 });
let text = "";
for await (const chunk of await client.completions.create({ ...common, prompt: "The capital of France is", max_tokens: 4, stream: true })) {
  text += chunk.choices[0].text;
}
assert.equal(text, completion.choices[0].text);

const chat = await client.chat.completions.create({ ...common, messages, max_tokens: 4 });
text = "";
for await (const chunk of await client.chat.completions.create({ ...common, messages, max_tokens: 4, stream: true })) {
  text += chunk.choices[0]?.delta.content ?? "";
}
assert.equal(text, chat.choices[0].message.content);

const helper = client.chat.completions.stream({ ...common, messages, max_tokens: 4 });
assert.equal(await helper.finalContent(), chat.choices[0].message.content);

// What it knows nothing of: events without choices, and ids.
const city = { type: "object", properties: { city: { type: "string", maxLength: 8 } }, required: ["city"], additionalProperties: false };
const aside = {
  stream_options: { include_usage: true, include_progress: true, include_partial_json: true },
  response_format: { type: "json_schema", json_schema: { name: "city", schema: city } },
};
const resumable = { headers: { "X-Stream-Resume": "1" } };
const kinds = new Set();
text = "";
for await (const chunk of await client.chat.completions.create({ ...common, messages, ...aside, stream: true }, resumable)) {
  for (const kind of ["progress", "partial_json", "usage"]) if (chunk[kind]) kinds.add(kind);
  text += chunk.choices[0]?.delta.content ?? "";
}
assert.deepEqual([...kinds], ["progress", "partial_json", "usage"]);
assert.equal(typeof JSON.parse(text).city, "string");
assert.equal(await client.chat.completions.stream({ ...common, messages, ...aside }, resumable).finalContent(), text);

await assert.rejects(client.chat.completions.create({ messages, model: "absent" }), { status: 404, code: "model_not_found" });

const response = await client.responses.create({ ...common, input: question, max_output_tokens: 64 });
const stream = client.responses.stream({ ...common, input: question, max_output_tokens: 64 });
assert.equal((await stream.finalResponse()).output_text, response.output_text);
console.log("done");
