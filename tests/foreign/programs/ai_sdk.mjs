// The AI SDK over the Responses API, chats and completions: text, streams, objects, tools, and a second turn by reference.
import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const modules = createRequire(`${process.env.MODULES}/`);
const load = (name) => import(pathToFileURL(modules.resolve(name)).href);
const { generateObject, generateText, streamText, tool } = await load("ai");
const { createOpenAI } = await load("@ai-sdk/openai");
const { createOpenAICompatible } = await load("@ai-sdk/openai-compatible");
const { z } = await load("zod");

const baseURL = `${process.argv[2]}/v1`;
const openai = createOpenAI({ baseURL, apiKey: "EMPTY" });
const like = createOpenAICompatible({ name: "like", baseURL, includeUsage: true, supportsStructuredOutputs: true });
const prompt = "What is the capital of France? Answer with one word.";
const common = { prompt, temperature: 0, maxOutputTokens: 64 };
const city = z.object({ city: z.string().max(20) });
const models = { responses: openai("demo"), chat: openai.chat("demo"), completion: openai.completion("demo"), like: like("demo") };

for (const [name, model] of Object.entries(models)) {
  const whole = await generateText({ ...common, model });
  const streamed = streamText({ ...common, model });
  let text = "";
  for await (const delta of streamed.textStream) text += delta;
  assert.equal(text, whole.text, name);
  assert.equal((await streamed.usage).outputTokens, whole.usage.outputTokens, name);
  if (name !== "completion") {
    const answer = await generateObject({ ...common, model, schema: city });
    assert.equal(typeof answer.object.city, "string", name);
  }
}

const first = [{ role: "user", content: prompt }];
const one = await generateText({ model: models.responses, messages: first, maxOutputTokens: 64 });
const messages = [...first, ...one.response.messages, { role: "user", content: "And of Italy?" }];
const two = await generateText({ model: models.responses, messages, maxOutputTokens: 64 });
assert.match(JSON.stringify(two.request.body), /item_reference/);
assert.ok(two.text);

const weather = tool({ inputSchema: z.object({ city: z.string().max(12) }), execute: async () => "sunny" });
const providerOptions = { openai: { parallelToolCalls: false } };
const called = await generateText({ ...common, model: models.responses, tools: { weather }, toolChoice: "required", providerOptions });
assert.deepEqual(called.toolResults.map((result) => result.output), ["sunny"]);
const after = [...first, ...called.response.messages];
assert.ok((await generateText({ model: models.responses, messages: after, maxOutputTokens: 64 })).text);
console.log("done");
