//! What clients of the API rely on, and what those get who ask for what cannot be.

mod support;

use polylora_server::{ServeError, ServerOptions};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};
use support::{
    Answer, Served, adapter_folder, copy_adapter, embedded, model_with, options, request,
};

const STORY: &str = "Once upon a time there was an owl. The owl";

fn chat(model: &str, more: Value) -> Value {
    let mut chat = json!({
        "model": model, "temperature": 0, "max_tokens": 60,
        "messages": [{ "role": "user", "content": "What is a lantern?" }],
    });
    for (key, value) in more.as_object().into_iter().flatten() {
        chat[key] = value.clone();
    }
    chat
}

/// An answer that is an error in OpenAI's form; its message, parameter and code.
fn error((status, answer): Answer, expected: u16) -> (String, Value, Value) {
    assert_eq!(status, expected, "{answer}");
    let error = &answer["error"];
    assert!(error["type"].is_string() && error.as_object().unwrap().len() == 4, "{answer}");
    (error["message"].as_str().unwrap().to_owned(), error["param"].clone(), error["code"].clone())
}

#[test]
fn models_are_cards_and_adapters_have_the_base_as_parent() {
    let served = Served::with_adapters(options());
    let (status, list) = served.get("/v1/models");
    assert_eq!((status, &list["object"]), (200, &json!("list")));
    let card = |id: &str| {
        let cards = list["data"].as_array().unwrap();
        cards.iter().find(|card| card["id"] == id).unwrap().clone()
    };
    assert_eq!(card("valley")["parent"], Value::Null);
    assert_eq!(card("valley")["max_model_len"], 512);
    let shout = card("shout");
    assert_eq!((&shout["parent"], &shout["object"]), (&json!("valley"), &json!("model")));
    assert!(shout["root"].as_str().unwrap().ends_with("shout"));
    for id in ["shout", "valley:shout", "valley::shout"] {
        assert_eq!(served.get(&format!("/v1/models/{id}")), (200, shout.clone()));
    }
    error(served.get("/v1/models/none"), 404);
    assert_eq!(served.get("/health"), (200, json!({ "status": "ok" })));
    assert_eq!(served.get("/version").1["version"], env!("CARGO_PKG_VERSION"));
}

#[test]
fn an_adapter_is_named_in_many_ways_and_an_unknown_one_is_not_the_base() {
    let served = Served::with_adapters(options());
    let shout = served.complete("shout", STORY, json!({}));
    assert_ne!(shout, served.complete("valley", STORY, json!({})));
    for model in ["valley:shout", "valley::shout"] {
        assert_eq!(served.complete(model, STORY, json!({})), shout);
    }
    for lora in [json!([{ "name": "shout" }]), json!([{ "id": 2, "scale": 1.0 }])] {
        assert_eq!(served.complete("valley", STORY, json!({ "lora": lora })), shout);
    }
    let off = json!({ "lora": [{ "name": "pirate", "scale": 0 }] });
    assert_eq!(served.complete("shout", STORY, off), shout);
    for model in ["none", "", "valley:", "valley:none", "other:shout", "valley:::shout", "../shout"]
    {
        let (_, param, code) =
            error(served.post("/v1/completions", &request(model, STORY, json!({}))), 404);
        assert_eq!((param, code), (json!("model"), json!("model_not_found")), "{model}");
    }
    for lora in [json!([{ "name": "none" }]), json!([{ "id": 9 }])] {
        let body = request("valley", STORY, json!({ "lora": lora }));
        error(served.post("/v1/completions", &body), 404);
    }
    for lora in [json!([{}]), json!([{ "name": "shout", "id": 2 }])] {
        let body = request("valley", STORY, json!({ "lora": lora }));
        error(served.post("/v1/completions", &body), 400);
    }
}

#[test]
fn default_scales_are_for_requests_that_say_nothing() {
    let served = Served::with_adapters(options());
    let [base, shout, pirate] =
        ["valley", "shout", "pirate"].map(|model| served.complete(model, STORY, json!({})));
    let (_, list) = served.get("/lora-adapters");
    let listed = |list: &Value| {
        let list = list.as_array().unwrap().iter();
        list.map(|a| (a["id"].clone(), a["name"].clone(), a["scale"].clone())).collect::<Vec<_>>()
    };
    let entry = |id: usize, name: &str, scale: f32| (json!(id), json!(name), json!(scale));
    let off = [entry(0, "json", 0.0), entry(1, "pirate", 0.0), entry(2, "shout", 0.0)];
    assert_eq!(listed(&list), off);
    let set = |scales: Value| served.post("/lora-adapters", &scales).0;
    assert_eq!(set(json!([{ "id": 2, "scale": 1.0 }, { "name": "pirate", "scale": 0.0 }])), 200);
    assert_eq!(listed(&served.get("/lora-adapters").1)[2], entry(2, "shout", 1.0));
    assert_eq!(served.complete("valley", STORY, json!({})), shout);
    assert_eq!(served.complete("pirate", STORY, json!({})), pirate);
    assert_eq!(served.complete("valley", STORY, json!({ "lora": [] })), base);
    assert_eq!(set(json!([{ "id": 7, "scale": 1.0 }])), 404);
    assert_eq!(set(json!([])), 200);
    assert_eq!(served.complete("valley", STORY, json!({})), base);
}

#[test]
fn chats_are_answered_whole_and_in_pieces() {
    let served = Served::with_adapters(options());
    let (status, answer) = served.post("/v1/chat/completions", &chat("shout", json!({})));
    assert_eq!((status, &answer["object"]), (200, &json!("chat.completion")));
    let choice = &answer["choices"][0];
    assert_eq!(
        (&choice["finish_reason"], &choice["message"]["role"]),
        (&json!("stop"), &json!("assistant"))
    );
    let text = choice["message"]["content"].as_str().unwrap();
    assert!(text.len() > 10 && text.to_uppercase() == text, "{text}");
    let usage = &answer["usage"];
    let tokens = |field: &str| usage[field].as_u64().unwrap();
    assert_eq!(tokens("prompt_tokens") + tokens("completion_tokens"), tokens("total_tokens"));

    let more = json!({ "stream_options": { "include_usage": true } });
    let pieces: Vec<Value> = served.stream("/v1/chat/completions", &chat("shout", more)).collect();
    let (last, pieces) = pieces.split_last().unwrap();
    assert_eq!((&last["choices"], &last["usage"]), (&json!([]), usage));
    assert_eq!(pieces[0]["choices"][0]["delta"], json!({ "role": "assistant", "content": "" }));
    assert_eq!(pieces.last().unwrap()["choices"][0]["finish_reason"], "stop");
    let deltas = pieces.iter().filter_map(|p| p["choices"][0]["delta"]["content"].as_str());
    assert_eq!(deltas.collect::<String>(), text);
    assert!(pieces.len() > 5 && pieces.iter().all(|p| p["object"] == "chat.completion.chunk"));

    // Parts of text are a text; anything else is no text.
    let parts =
        json!([{ "type": "text", "text": "What is " }, { "type": "text", "text": "a lantern?" }]);
    let body = chat("shout", json!({ "messages": [{ "role": "user", "content": parts }] }));
    assert_eq!(
        served.post("/v1/chat/completions", &body).1["choices"][0]["message"]["content"],
        text
    );
    let image = json!([{ "type": "image_url", "image_url": { "url": "x" } }]);
    let body = chat("shout", json!({ "messages": [{ "role": "user", "content": image }] }));
    let (message, param, _) = error(served.post("/v1/chat/completions", &body), 400);
    assert!(message.contains("image_url") && param == "messages[0].content", "{message} {param}");
}

#[test]
fn logprobs_are_told_and_sum_up() {
    let served = Served::with_adapters(options());
    let more = json!({ "logprobs": true, "top_logprobs": 3, "max_tokens": 8 });
    let (_, answer) = served.post("/v1/chat/completions", &chat("pirate", more));
    let content = answer["choices"][0]["logprobs"]["content"].as_array().unwrap().clone();
    assert_eq!(content.len(), 8);
    for token in &content {
        let top = token["top_logprobs"].as_array().unwrap();
        assert_eq!(top.len(), 3);
        // By the likeliest tokens, each is the first of its list.
        assert_eq!((&token["token"], &token["logprob"]), (&top[0]["token"], &top[0]["logprob"]));
        let sum: f64 = top.iter().map(|t| t["logprob"].as_f64().unwrap().exp()).sum();
        assert!(sum > 0.0 && sum < 1.0 + 1e-6);
        let bytes: Vec<u8> = serde_json::from_value(token["bytes"].clone()).unwrap();
        assert_eq!(String::from_utf8_lossy(&bytes), token["token"].as_str().unwrap());
    }
    let texts: String = content.iter().map(|t| t["token"].as_str().unwrap()).collect();
    assert_eq!(texts, answer["choices"][0]["message"]["content"]);

    // A completion that repeats its prompt scores that too; nothing need be written.
    let more = json!({ "echo": true, "logprobs": 1, "max_tokens": 4 });
    let (_, answer) = served.post("/v1/completions", &request("pirate", STORY, more.clone()));
    let choice = &answer["choices"][0];
    let text = choice["text"].as_str().unwrap();
    assert!(text.starts_with(STORY) && text.len() > STORY.len(), "{text}");
    let logprobs = &choice["logprobs"];
    let list = |field: &str| logprobs[field].as_array().unwrap().clone();
    let prompt_tokens = answer["usage"]["prompt_tokens"].as_u64().unwrap() as usize;
    assert_eq!(list("tokens").len(), prompt_tokens + 4);
    let joined: String = list("tokens").iter().map(|t| t.as_str().unwrap().to_owned()).collect();
    assert!(joined.ends_with(text), "{joined}");
    let values = list("token_logprobs");
    assert!(values[0].is_null() && values[1..].iter().all(|v| v.as_f64().unwrap() <= 0.0));
    let offsets: Vec<u64> = serde_json::from_value(logprobs["text_offset"].clone()).unwrap();
    assert!(offsets.is_sorted() && offsets[0] == 0);
    let more = json!({ "echo": true, "logprobs": 1, "max_tokens": 0 });
    let (_, scored) = served.post("/v1/completions", &request("pirate", STORY, more));
    assert_eq!(scored["choices"][0]["text"], STORY);
    let scored = &scored["choices"][0]["logprobs"]["token_logprobs"].as_array().unwrap()[1..];
    assert_eq!(scored.len(), prompt_tokens - 1);
    let same = |(a, b): (&Value, &Value)| (a.as_f64().unwrap() - b.as_f64().unwrap()).abs() < 1e-3;
    assert!(scored.iter().zip(&values[1..]).all(same));
    // In pieces it is the same.
    let more = json!({ "echo": true, "logprobs": 1, "max_tokens": 4 });
    let mut tokens = Vec::new();
    for piece in served.stream("/v1/completions", &request("pirate", STORY, more)) {
        let piece = &piece["choices"][0]["logprobs"]["token_logprobs"];
        tokens.extend(piece.as_array().into_iter().flatten().cloned());
    }
    assert_eq!(tokens.len(), values.len());
}

#[test]
fn answers_are_as_many_as_asked_for_and_seeds_repeat_them() {
    let served = Served::new(options());
    let texts = |more: Value| {
        let (status, answer) = served.post("/v1/completions", &request("valley", STORY, more));
        assert_eq!(status, 200, "{answer}");
        let choices = answer["choices"].as_array().unwrap().clone();
        for (index, choice) in choices.iter().enumerate() {
            assert_eq!(choice["index"], index);
        }
        choices.iter().map(|c| c["text"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let warm = json!({ "temperature": 1.5, "seed": 7, "n": 3 });
    let three = texts(warm.clone());
    assert!(three.len() == 3 && three[0] != three[1] && three[1] != three[2], "{three:?}");
    assert_eq!(texts(warm), three);
    assert_eq!(texts(json!({ "temperature": 1.5, "seed": 8 }))[0], three[1]);
    assert_ne!(
        texts(json!({ "temperature": 1.5 })),
        texts(json!({ "temperature": 1.5 })),
        "without a seed each is new"
    );
    let two = texts(json!({ "prompt": [STORY, "The fox"], "n": 2 }));
    assert!(two.len() == 4 && two[0] == two[1] && two[1] != two[2]);
    let long = texts(json!({}));
    let word = long[0].split(' ').nth(6).unwrap();
    let stopped = texts(json!({ "stop": [word, "never said"] }));
    assert_eq!(stopped[0], long[0][..long[0].find(word).unwrap()]);
    let (_, answer) = served.post("/v1/completions", &request("valley", STORY, json!({})));
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    // A token that is forbidden is not written; as tokens a prompt is the same.
    let biased = texts(json!({ "logit_bias": { "300": 100.0 }, "max_tokens": 5 }));
    assert_ne!(biased[0], texts(json!({ "max_tokens": 5 }))[0]);
}

#[test]
fn a_shape_is_kept_to() {
    let served = Served::with_adapters(options());
    let schema = json!({
        "type": "object",
        "properties": { "animal": { "enum": ["owl", "fox"] }, "age": { "type": "integer", "maximum": 9 } },
        "required": ["animal", "age"],
        "additionalProperties": false,
    });
    let format = json!({ "type": "json_schema", "json_schema": { "name": "x", "schema": schema, "strict": true } });
    for model in ["valley", "shout", "json"] {
        let body = chat(model, json!({ "response_format": format }));
        let (status, answer) = served.post("/v1/chat/completions", &body);
        assert_eq!(status, 200, "{answer}");
        let text = answer["choices"][0]["message"]["content"].as_str().unwrap();
        let value: Value = serde_json::from_str(text).unwrap();
        assert!(["owl", "fox"].contains(&value["animal"].as_str().unwrap()), "{value}");
        assert!(value["age"].as_i64().unwrap() <= 9 && value.as_object().unwrap().len() == 2);
    }
    let wrong =
        json!({ "type": "json_schema", "json_schema": { "schema": { "type": "nonsense" } } });
    let body = chat("valley", json!({ "response_format": wrong }));
    let (_, param, _) = error(served.post("/v1/chat/completions", &body), 400);
    assert_eq!(param, "response_format");
}

#[test]
fn tools_are_called_where_the_template_shows_them() {
    let tools = json!([{
        "type": "function",
        "function": {
            "name": "find",
            "description": "Finds an animal",
            "parameters": {
                "type": "object",
                "properties": { "animal": { "enum": ["owl", "fox"] } },
                "required": ["animal"],
                "additionalProperties": false,
            },
        },
    }]);
    let served = Served::new(options());
    let body = chat("valley", json!({ "tools": tools }));
    let (_, param, _) = error(served.post("/v1/chat/completions", &body), 400);
    assert_eq!(param, "tools");
    let none = chat("valley", json!({ "tools": tools, "tool_choice": "none" }));
    assert_eq!(served.post("/v1/chat/completions", &none).0, 200);

    let template = "{% if tools %}Write <tool_call>: {{ tools | tojson }}\n{% endif %}\
        {% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}\
        {% if message.tool_calls %}{{ message.tool_calls[0].function.arguments.animal }}{% endif %}\
        <|im_end|>\n{% endfor %}<|im_start|>assistant\n";
    let gguf = model_with(&[("tokenizer.chat_template", template.into())]);
    let served = Served::of(gguf, options()).unwrap();
    let named = json!({ "type": "function", "function": { "name": "find" } });
    for choice in [json!("required"), named] {
        let body = chat("valley", json!({ "tools": tools, "tool_choice": choice }));
        let (status, answer) = served.post("/v1/chat/completions", &body);
        assert_eq!(status, 200, "{answer}");
        let choice = &answer["choices"][0];
        assert_eq!(choice["finish_reason"], "tool_calls", "{choice}");
        let call = &choice["message"]["tool_calls"][0];
        assert_eq!(
            (&call["type"], &call["function"]["name"]),
            (&json!("function"), &json!("find"))
        );
        let arguments = call["function"]["arguments"].as_str().unwrap();
        let arguments: Value = serde_json::from_str(arguments).unwrap();
        assert!(["owl", "fox"].contains(&arguments["animal"].as_str().unwrap()));
        // In pieces.
        let pieces: Vec<Value> = served.stream("/v1/chat/completions", &body).collect();
        let calls = pieces.iter().filter_map(|p| p["choices"][0]["delta"]["tool_calls"].as_array());
        assert_eq!(calls.flatten().count(), 1);
        assert_eq!(pieces.last().unwrap()["choices"][0]["finish_reason"], "tool_calls");
    }
    // What was called earlier goes back in, its arguments as values.
    let messages = json!([
        { "role": "user", "content": "Find an owl." },
        { "role": "assistant", "content": null, "tool_calls": [{ "id": "1", "type": "function",
            "function": { "name": "find", "arguments": "{\"animal\": \"owl\"}" } }] },
        { "role": "tool", "tool_call_id": "1", "content": "In the tree." },
    ]);
    let body = chat("valley", json!({ "tools": tools, "messages": messages }));
    assert_eq!(served.post("/v1/chat/completions", &body).0, 200);
    let missing = json!({ "type": "function", "function": { "name": "none" } });
    let body = chat("valley", json!({ "tools": tools, "tool_choice": missing }));
    assert_eq!(error(served.post("/v1/chat/completions", &body), 400).1, "tool_choice");
}

#[test]
fn embeddings_are_for_models_that_are_made_for_them() {
    let served = Served::new(options());
    let body = json!({ "model": "valley", "input": ["an owl"] });
    let (_, _, code) = error(served.post("/v1/embeddings", &body), 400);
    assert_eq!(code, "unsupported_model");
    for pooling in [1u32, 3] {
        let gguf = model_with(&[("llama.pooling_type", pooling.into())]);
        let folder = adapter_folder();
        let options = ServerOptions { adapter_dir: Some(folder.path().to_owned()), ..options() };
        let served = Served::of(gguf, options).unwrap();
        let long = "an owl sat in the old tree by the river. ".repeat(20);
        let vectors = |model: &str, input: Value| {
            let body = json!({ "model": model, "input": input });
            let (status, answer) = served.post("/v1/embeddings", &body);
            assert_eq!(status, 200, "{answer}");
            let data = answer["data"].as_array().unwrap().clone();
            let vector =
                |entry: &Value| serde_json::from_value(entry["embedding"].clone()).unwrap();
            data.iter().map(vector).collect::<Vec<Vec<f64>>>()
        };
        let cosine = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let three = vectors("valley", json!(["an owl", "a fox", long]));
        for vector in &three {
            assert_eq!(vector.len(), 256);
            assert!((cosine(vector, vector) - 1.0).abs() < 1e-5);
        }
        assert!(cosine(&three[0], &three[1]) < 0.999);
        assert!(cosine(&vectors("valley", json!("an owl"))[0], &three[0]) > 0.99999);
        assert!(cosine(&vectors("shout", json!("an owl"))[0], &three[0]) < 0.9999);
        let body = json!({ "model": "valley", "input": "an owl", "encoding_format": "base64" });
        let (_, answer) = served.post("/v1/embeddings", &body);
        let text = answer["data"][0]["embedding"].as_str().unwrap();
        assert_eq!(text.len(), (4usize * 256).div_ceil(3) * 4);
    }
}

#[test]
fn what_cannot_be_is_refused_with_the_place_of_the_mistake() {
    let served = Served::new(options());
    let completions = |more: Value| served.post("/v1/completions", &request("valley", STORY, more));
    for (more, expected) in [
        (json!({ "temperature": "hot" }), "temperature"),
        (json!({ "prompt": 5 }), "prompt"),
        (json!({ "prompt": [] }), "prompt"),
        (json!({ "prompt": [99_999] }), "prompt"),
        (json!({ "n": 0 }), "n"),
        (json!({ "logprobs": 99 }), "logprobs"),
        (json!({ "suffix": "end" }), "suffix"),
        (json!({ "best_of": 3 }), "best_of"),
        (json!({ "stop": "" }), "stop"),
        (json!({ "lora": [{ "name": "x", "scale": "much" }] }), "lora[0].scale"),
    ] {
        let (message, param, _) = error(completions(more.clone()), 400);
        assert_eq!(param, expected, "{more}: {message}");
    }
    for more in [
        json!({ "temperature": -1.0 }),
        json!({ "top_p": 0.0 }),
        json!({ "logit_bias": { "99999": 1.0 } }),
        json!({ "prompt": "" }),
    ] {
        error(completions(more), 400);
    }
    let (message, _, code) = error(completions(json!({ "prompt": "owl ".repeat(600) })), 400);
    assert!(code == "context_length_exceeded" && message.contains("512"), "{message}");
    for text in ["", "{", "[]", "nonsense", "{\"model\": \"valley\"}", "{} {}", "\u{0}"] {
        error(served.post_text("/v1/completions", text), 400);
    }
    let chats = |more: Value| served.post("/v1/chat/completions", &chat("valley", more));
    for (more, expected) in [
        (json!({ "messages": [] }), "messages"),
        (json!({ "messages": [{ "content": "x" }] }), "messages[0]"),
        (json!({ "functions": [] }), "functions"),
        (json!({ "top_logprobs": 2 }), "top_logprobs"),
        (json!({ "logprobs": true, "top_logprobs": 21 }), "top_logprobs"),
        (json!({ "response_format": { "type": "poem" } }), "response_format.type"),
    ] {
        let (message, param, _) = error(chats(more.clone()), 400);
        assert_eq!(param, expected, "{more}: {message}");
    }
    error(served.get("/nowhere"), 404);
    error(served.get("/v1/completions"), 405);
    error(
        served.post("/v1/load_lora_adapter", &json!({ "lora_name": "x", "lora_path": "x" })),
        403,
    );
    let large = format!("{{\"model\": \"valley\", \"prompt\": \"{}\"}}", "x".repeat(17 << 20));
    error(served.post_text("/v1/completions", &large), 413);
    assert_eq!(served.get("/health").0, 200);
}

#[test]
fn who_asks_whether_a_body_is_too_large_need_not_send_it() {
    let served = Served::new(options());
    let mut stream = TcpStream::connect(served.address()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\
                content-length: 17000000\r\nexpect: 100-continue\r\n\r\n";
    stream.write_all(head.as_bytes()).unwrap();
    let mut start = [0; 12];
    stream.read_exact(&mut start).unwrap();
    assert_eq!(&start, b"HTTP/1.1 413");
    // Nothing else can be asked on this connection: it has to be told.
    let mut rest = String::new();
    stream.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("\r\nconnection: close\r\n"), "{rest}");
}

/// What a server says to bytes that are sent to it.
fn raw(served: &Served, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(served.address()).unwrap();
    stream.write_all(request).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    answer
}

#[test]
fn json_must_say_that_it_is_json_and_a_body_must_come() {
    let served = Served::new(options());
    let answer = raw(
        &served,
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: text/plain\r\n\
          content-length: 2\r\n\r\n{}",
    );
    assert!(answer.starts_with("HTTP/1.1 415") && answer.contains("application/json"), "{answer}");
    let start = Instant::now();
    let answer = raw(
        &served,
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: \
          application/json\r\ncontent-length: 100\r\n\r\n{\"model\": ",
    );
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    assert!(start.elapsed() < Duration::from_secs(40));
    let answer = raw(&served, b"nonsense\r\n\r\n");
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400"), "{answer}");
    // A request's name is taken over where it is plain, and given where there is none.
    let id = |header: &str| {
        let request =
            format!("GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{header}\r\n");
        let answer = raw(&served, request.as_bytes());
        let line = answer.lines().find_map(|l| l.strip_prefix("x-request-id: "));
        line.unwrap().to_owned()
    };
    assert_eq!(id("x-request-id: trace-1.2\r\n"), "trace-1.2");
    assert!(id("x-request-id: a b\r\n").starts_with("req-") && id("").starts_with("req-"));
}

#[test]
fn the_description_has_every_route() {
    let served = Served::new(options());
    let (_, description) = served.get("/openapi.json");
    assert_eq!(description["openapi"].as_str().unwrap().split('.').next(), Some("3"));
    let paths = description["paths"].as_object().unwrap();
    for path in [
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/embeddings",
        "/v1/models",
        "/v1/models/{id}",
        "/v1/load_lora_adapter",
        "/v1/unload_lora_adapter",
        "/lora-adapters",
        "/adapters",
        "/health",
        "/version",
        "/metrics",
    ] {
        assert!(paths.contains_key(path), "{path}");
    }
    let (status, page) = served.get_text("/");
    assert!(status == 200 && page.contains("PolyLoRA"));
    for file in ["/page.css", "/page.js", "/icon.svg"] {
        assert_eq!(served.get_text(file).0, 200, "{file}");
    }
}

/// Each key is its name and `-secret`.
const KEYS: &str = r#"
[[key]]
name = "acme"
sha256 = ""
adapters = ["shout"]

[[key]]
name = "globex"
sha256 = ""
adapters = ["pirate", "j*"]

[[key]]
name = "root"
sha256 = ""
admin = true

[[key]]
name = "slow"
sha256 = ""
requests_per_minute = 1
"#;

fn keys_file() -> tempfile::NamedTempFile {
    use sha2::Digest;
    use std::fmt::Write as _;
    let mut text = String::new();
    let mut name = "";
    for line in KEYS.lines() {
        if let Some(found) = line.strip_prefix("name = ") {
            name = found.split('"').nth(1).unwrap();
        }
        if line.starts_with("sha256") {
            let hash = sha2::Sha256::digest(format!("{name}-secret"));
            let hash = hash.iter().fold(String::new(), |mut hex, byte| {
                write!(hex, "{byte:02x}").unwrap();
                hex
            });
            writeln!(text, "sha256 = \"{hash}\"").unwrap();
        } else {
            writeln!(text, "{line}").unwrap();
        }
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    file
}

#[test]
fn a_key_opens_what_is_its_own_and_tells_nothing_of_the_rest() {
    let keys = keys_file();
    let options = ServerOptions { api_keys: Some(keys.path().to_owned()), ..options() };
    let served = Served::with_adapters(options);
    let [acme, globex, root, slow] =
        ["acme", "globex", "root", "slow"].map(|name| served.with_key(&format!("{name}-secret")));
    for path in ["/v1/models", "/adapters", "/lora-adapters", "/metrics", "/v1/models/shout"] {
        let (_, _, code) = error(served.get(path), 401);
        assert_eq!(code, "invalid_api_key");
        error(served.with_key("acme-secre").get(path), 401);
    }
    for path in ["/health", "/version", "/openapi.json", "/", "/page.js"] {
        assert_eq!(served.get_text(path).0, 200, "{path}");
    }
    let body = |model: &str| request(model, STORY, json!({ "max_tokens": 3 }));
    let ask = |client: &support::Client, model: &str| client.post("/v1/completions", &body(model));
    assert_eq!([ask(&acme, "valley").0, ask(&acme, "shout").0, ask(&globex, "json").0], [200; 3]);

    // What others have is as if it were not there, in every way to name it.
    let told = |answer: Answer, name: &str| {
        let (message, param, code) = error(answer, 404);
        (message.replace(name, "_"), param, code)
    };
    for model in ["pirate", "valley:pirate", "valley::pirate"] {
        let missing = model.replace("pirate", "nobody");
        assert_eq!(told(ask(&acme, model), model), told(ask(&acme, &missing), &missing));
        let path = |name: &str| format!("/v1/models/{name}");
        assert_eq!(told(acme.get(&path(model)), model), told(acme.get(&path(&missing)), &missing));
    }
    let by_name = |name: &str| {
        let lora = json!({ "lora": [{ "name": name }] });
        told(acme.post("/v1/completions", &request("valley", STORY, lora)), name)
    };
    assert_eq!(by_name("pirate"), by_name("nobody"));
    // Numbers are of what each may use: shout, the third, is acme's first and only one.
    let by_id = |client: &support::Client, id: usize| {
        let lora = json!({ "lora": [{ "id": id }], "max_tokens": 30 });
        client.post("/v1/completions", &request("valley", STORY, lora))
    };
    let shout = acme.complete("shout", STORY, json!({}));
    assert_eq!(by_id(&acme, 0).1["choices"][0]["text"], shout.as_str());
    assert_eq!([by_id(&acme, 1).0, by_id(&acme, 2).0, by_id(&globex, 2).0], [404; 3]);
    let ids = |client: &support::Client| {
        let (_, models) = client.get("/v1/models");
        let ids = models["data"].as_array().unwrap().iter().map(|m| m["id"].clone());
        ids.collect::<Vec<_>>()
    };
    assert_eq!(ids(&acme), ["valley", "shout"]);
    assert_eq!(ids(&globex), ["valley", "json", "pirate"]);
    assert_eq!(ids(&root), ["valley", "json", "pirate", "shout"]);
    let (_, overview) = acme.get("/adapters");
    assert_eq!(overview["adapters"].as_array().unwrap().len(), 1);
    assert!(overview["cache"].is_null() && overview["requests"].is_null());
    // How much others use it.
    assert!(overview["adapters"][0]["tokens"].is_null());
    assert!(root.get("/adapters").1["adapters"][2]["tokens"].as_u64().unwrap() > 0);
    let all = [
        acme.get_text("/v1/models").1,
        acme.get_text("/adapters").1,
        acme.get_text("/lora-adapters").1,
    ];
    for text in all {
        assert!(
            !text.contains("pirate") && !text.contains("json\"") && !text.contains("/tmp"),
            "{text}"
        );
    }

    // What changes the server, or tells of all, is for admins.
    for (path, body) in [
        ("/lora-adapters", json!([])),
        ("/v1/load_lora_adapter", json!({ "lora_name": "x", "lora_path": "shout" })),
        ("/v1/unload_lora_adapter", json!({ "lora_name": "shout" })),
    ] {
        error(acme.post(path, &body), 403);
    }
    error(acme.get("/metrics"), 403);
    assert_eq!((root.get_text("/metrics").0, ask(&root, "pirate").0), (200, 200));
    // Defaults that an admin sets are not for those who may not use the adapter.
    let base = acme.complete("valley", STORY, json!({}));
    assert_eq!(root.post("/lora-adapters", &json!([{ "name": "pirate", "scale": 1.0 }])).0, 200);
    assert_eq!(acme.complete("valley", STORY, json!({})), base);
    assert_ne!(globex.complete("valley", STORY, json!({})), base);

    assert_eq!(ask(&slow, "valley").0, 200);
    let (_, _, code) = error(ask(&slow, "valley"), 429);
    assert_eq!(code, "rate_limit_exceeded");
    let wait = slow.header("/v1/completions", &body("valley"), "retry-after").unwrap();
    assert!((50..=60).contains(&wait.parse::<u64>().unwrap()), "{wait}");
}

#[cfg(unix)]
#[test]
fn adapters_are_loaded_from_their_folder_and_nowhere_else() {
    use std::os::unix::fs::symlink;
    let outside = adapter_folder();
    let folder = adapter_folder();
    let root = folder.path();
    symlink(outside.path().join("shout"), root.join("linked")).unwrap();
    symlink(root.join("pirate"), root.join("inner")).unwrap();
    copy_adapter("shout", &root.join("half"));
    std::fs::remove_file(root.join("half/adapter_model.safetensors")).unwrap();
    symlink(
        outside.path().join("shout/adapter_model.safetensors"),
        root.join("half/adapter_model.safetensors"),
    )
    .unwrap();
    copy_adapter("pirate", &root.join("more/deep"));
    let options = ServerOptions {
        adapter_dir: Some(root.to_owned()),
        allow_adapter_loading: true,
        ..options()
    };
    let served = Served::new(options);
    let (_, models) = served.get("/v1/models");
    let names: Vec<&str> =
        models["data"].as_array().unwrap().iter().map(|m| m["id"].as_str().unwrap()).collect();
    assert_eq!(names, ["valley", "inner", "json", "pirate", "shout"]);

    let load = |name: &str, path: &str| {
        let body = json!({ "lora_name": name, "lora_path": path });
        served.post("/v1/load_lora_adapter", &body)
    };
    let leaf = outside.path().file_name().unwrap().to_str().unwrap();
    for path in [
        "..".to_owned(),
        "../".to_owned() + leaf + "/shout",
        "shout/../../".to_owned() + leaf + "/shout",
        outside.path().join("shout").to_str().unwrap().to_owned(),
        "/etc/passwd".to_owned(),
        "/no/such/place".to_owned(),
        "../no/such/place".to_owned(),
        "linked".to_owned(),
        "half".to_owned(),
        ".".to_owned(),
        embedded("shout").to_str().unwrap().to_owned(),
    ] {
        let (message, param, _) = error(load("new", &path), 403);
        assert_eq!(param, "lora_path", "{path}: {message}");
    }
    error(load("new", "missing"), 404);
    error(load("", "shout"), 400);
    error(load("new", ""), 400);
    error(load("valley", "shout"), 400);
    error(load("pirate", "shout"), 400);
    error(load("a,b", "shout"), 400);
    error(load("new", "more"), 400);
    assert_eq!(load("new", "more/deep").1, "Success: LoRA adapter 'new' added successfully.");
    error(load("new", "shout"), 400);
    let absolute = root.join("shout");
    assert_eq!(load("other", absolute.to_str().unwrap()).0, 200);
    let text = served.complete("new", STORY, json!({}));
    assert_eq!(text, served.complete("pirate", STORY, json!({})));
}

#[test]
fn what_cannot_be_served_is_told_at_once() {
    let gguf = || model_with(&[]);
    let fails = |options: ServerOptions| match Served::of(gguf(), options) {
        Ok(_) => panic!("it starts"),
        Err(error) => error,
    };
    let damaged = tempfile::tempdir().unwrap();
    copy_adapter("shout", damaged.path());
    std::fs::write(damaged.path().join("adapter_model.safetensors"), "nonsense").unwrap();
    let adapter = polylora_adapter::AdapterSpec::new(damaged.path());
    let error = fails(ServerOptions { adapters: vec![adapter], ..options() });
    assert!(matches!(error, ServeError::Adapter { .. }), "{error}");
    let error = fails(ServerOptions { adapter_dir: Some("/no/such/folder".into()), ..options() });
    assert!(error.to_string().contains("/no/such/folder"), "{error}");
    let error = fails(ServerOptions { api_keys: Some("/no/such/file".into()), ..options() });
    assert!(error.to_string().contains("/no/such/file"), "{error}");
    let error = fails(ServerOptions { context: Some(512), kv_memory: Some(1 << 19), ..options() });
    assert!(matches!(error, ServeError::Memory { context: 512, .. }), "{error}");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let error = fails(ServerOptions { port, ..options() });
    assert!(matches!(error, ServeError::Listen { .. }), "{error}");
    // Where nothing is asked for, the context is what fits.
    let small = ServerOptions { kv_memory: Some(1 << 19), ..options() };
    let (_, overview) = Served::new(small).get("/adapters");
    assert_eq!(overview["model"]["context"], 256);
}
