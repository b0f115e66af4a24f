//! Many requests at a time: each is answered as if it were alone, and none starves.

mod support;

use polylora_server::ServerOptions;
use serde_json::{Value, json};
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};
use support::{Served, adapter_folder, copy_adapter, options, request, text_of, together};

const STORY: &str = "Once upon a time there was an owl. The owl";

/// A batch of so many rows, and so much memory for keys and values.
fn rows(kv_memory: Option<u64>, parallel: usize) -> ServerOptions {
    let parallel = NonZeroUsize::new(parallel).unwrap();
    ServerOptions { kv_memory, parallel, ..options() }
}

/// Eight ways to apply adapters, no two alike.
fn eight() -> [Value; 8] {
    let lora = |list: Value| json!({ "lora": list });
    [
        lora(json!([])),
        lora(json!([{ "name": "shout" }])),
        lora(json!([{ "name": "pirate" }])),
        lora(json!([{ "name": "json" }])),
        lora(json!([{ "name": "shout", "scale": 0.5 }])),
        lora(json!([{ "name": "pirate", "scale": -1.0 }])),
        lora(json!([{ "name": "json" }, { "name": "pirate", "scale": 0.7 }])),
        lora(json!([{ "id": 2, "scale": 2.0 }, { "name": "json", "scale": 0.1 }])),
    ]
}

#[test]
fn eight_requests_with_eight_adapters_write_what_each_writes_alone() {
    let served = Served::with_adapters(options());
    let eight = eight();
    let alone: Vec<String> =
        eight.iter().map(|lora| served.complete("valley", STORY, lora.clone())).collect();
    let different: std::collections::HashSet<&String> = alone.iter().collect();
    assert!(different.len() >= 6, "{alone:?}");
    let at_once = together(8, |i| served.complete("valley", STORY, eight[i].clone()));
    assert_eq!(at_once, alone);
    // Also where prompts are longer than what a step reads while others write.
    let long = format!("{STORY} {}", "saw a fox and a bear and a hare by the river. ".repeat(20));
    let alone: Vec<String> =
        eight.iter().map(|lora| served.complete("valley", &long, lora.clone())).collect();
    let at_once = together(16, |i| {
        let prompt = if i < 8 { &long } else { STORY };
        served.complete("valley", prompt, eight[i % 8].clone())
    });
    assert_eq!(at_once[..8], alone);
}

#[test]
fn little_memory_makes_answers_wait_but_changes_none() {
    // Room for the keys and values of one whole context and a little more.
    let page = 4 * 2 * 64 * 2 * 64 * 2;
    let tight = rows(Some(10 * page), 8);
    let served = Served::with_adapters(tight);
    let (_, overview) = served.get("/adapters");
    assert_eq!(overview["cache"]["kv_capacity"], 10);
    let prompt = |i: usize| format!("{STORY} number {i} {}", "went to the river and ".repeat(10));
    let more = json!({ "max_tokens": 150, "model": "shout" });
    let alone: Vec<String> =
        (0..6).map(|i| served.complete("valley", &prompt(i), more.clone())).collect();
    let at_once = together(6, |i| served.complete("valley", &prompt(i), more.clone()));
    assert_eq!(at_once, alone);
    let (_, metrics) = served.get_text("/metrics");
    let preemptions = metrics.lines().find_map(|l| l.strip_prefix("polylora_preemptions_total "));
    assert!(preemptions.unwrap().parse::<u32>().unwrap() > 0, "the test is to be tight");
}

#[test]
fn a_light_tenant_does_not_wait_for_a_heavy_one() {
    let served = Served::with_adapters(rows(None, 2));
    let done = AtomicUsize::new(0);
    let place = std::thread::scope(|scope| {
        for i in 0..8 {
            let (served, done) = (&served, &done);
            scope.spawn(move || {
                let prompt = format!("{STORY} {i}");
                served.complete("pirate", &prompt, json!({ "max_tokens": 200 }));
                done.fetch_add(1, Ordering::SeqCst);
            });
        }
        served.wait_until(|overview| overview["requests"]["waiting"] == 6);
        served.complete("shout", STORY, json!({ "max_tokens": 5 }));
        done.load(Ordering::SeqCst)
    });
    // Both rows were taken; one is given up for the one who has none.
    assert!(place <= 2, "{place} of the others' eight were done first");
}

#[test]
fn what_waits_is_bounded_and_told_when_to_come_again() {
    let options = ServerOptions { max_queue: 2, ..rows(None, 1) };
    let served = Served::new(options);
    let endless = json!({ "max_tokens": 450 });
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| served.complete("valley", STORY, endless.clone()));
            served.wait_until(|overview| overview["requests"]["running"] == 1);
        }
        scope.spawn(|| served.complete("valley", STORY, endless.clone()));
        served.wait_until(|overview| overview["requests"]["waiting"] == 2);
        let (status, answer) = served.post("/v1/completions", &request("valley", STORY, json!({})));
        assert_eq!((status, &answer["error"]["code"]), (429, &json!("server_overloaded")));
        let header =
            served.header("/v1/completions", &request("valley", STORY, json!({})), "retry-after");
        assert!(header.unwrap().parse::<u64>().unwrap() >= 1);
        // Of several, all or none are taken.
        let several = request("valley", STORY, json!({ "n": 5 }));
        assert_eq!(served.post("/v1/completions", &several).0, 429);
    });
}

#[test]
fn a_client_that_goes_away_frees_its_row() {
    let served = Served::new(rows(None, 1));
    let mut stream =
        served.stream("/v1/completions", &request("valley", STORY, json!({ "max_tokens": 450 })));
    stream.next().unwrap();
    served.wait_until(|overview| overview["requests"]["running"] == 1);
    drop(stream);
    served.wait_until(|overview| overview["requests"]["running"] == 0);
    let (_, metrics) = served.get_text("/metrics");
    let cancelled = "polylora_requests_total{adapter=\"base\",outcome=\"cancelled\"} 1";
    assert!(metrics.contains(cancelled), "{metrics}");
}

#[test]
fn the_end_waits_for_what_was_begun() {
    let served = Served::new(rows(None, 1));
    let body = request("valley", STORY, json!({ "max_tokens": 200 }));
    let whole = served.complete("valley", STORY, json!({ "max_tokens": 200 }));
    let mut stream = served.stream("/v1/completions", &body);
    let first = stream.next().unwrap();
    let ended = std::thread::scope(|scope| {
        // One that has its row, and one that waits for it.
        let waiting = scope.spawn(|| served.complete("valley", STORY, json!({ "seed": 1 })));
        served.wait_until(|overview| overview["requests"]["waiting"] == 1);
        served.server().stop();
        let (text, reason) = text_of(std::iter::once(first).chain(stream));
        assert_eq!((text, reason.as_str()), (whole, "length"));
        waiting.join().unwrap()
    });
    assert!(!ended.is_empty());
    served.end().unwrap();
}

#[test]
fn a_reload_changes_the_next_answer_and_not_the_running_one() {
    let folder = adapter_folder();
    copy_adapter("shout", &folder.path().join("mine"));
    let options = ServerOptions {
        adapter_dir: Some(folder.path().to_owned()),
        allow_adapter_loading: true,
        ..options()
    };
    let served = Served::new(options);
    let long = json!({ "max_tokens": 250 });
    let [shout, pirate] =
        ["shout", "pirate"].map(|name| served.complete(name, STORY, long.clone()));
    assert_ne!(shout, pirate);
    let load = |path: &str| {
        let body = json!({ "lora_name": "mine", "lora_path": path, "load_inplace": true });
        let (status, answer) = served.post("/v1/load_lora_adapter", &body);
        assert_eq!(status, 200, "{answer}");
    };
    // The same prompt in every order: what was read under the one is never the other's.
    let (mut now, mut other) = (("shout", &shout), ("pirate", &pirate));
    for round in 0..6 {
        let mut stream = served.stream("/v1/completions", &request("mine", STORY, long.clone()));
        let first = stream.next().unwrap();
        if round % 3 == 2 {
            // The files are written over while they are in use.
            let path = folder.path().join("mine");
            copy_adapter(other.0, &path);
            load("mine");
        } else {
            load(other.0);
        }
        assert_eq!(served.complete("mine", STORY, long.clone()), *other.1, "round {round}");
        let (text, _) = text_of(std::iter::once(first).chain(stream));
        assert_eq!(text, *now.1, "round {round}");
        assert_eq!(served.complete(now.0, STORY, long.clone()), *now.1, "round {round}");
        std::mem::swap(&mut now, &mut other);
    }
    // Taken away while it is in use.
    let mut stream = served.stream("/v1/completions", &request("mine", STORY, long));
    let first = stream.next().unwrap();
    let unload = json!({ "lora_name": "mine" });
    let (status, message) = served.post("/v1/unload_lora_adapter", &unload);
    let expected = "Success: LoRA adapter 'mine' removed successfully.";
    assert_eq!((status, message.as_str()), (200, Some(expected)));
    assert_eq!(text_of(std::iter::once(first).chain(stream)).0, *now.1);
    assert_eq!(served.post("/v1/completions", &request("mine", STORY, json!({}))).0, 404);
    assert_eq!(served.post("/v1/unload_lora_adapter", &unload).0, 404);
}

#[test]
fn adapters_take_turns_in_a_cache_for_one() {
    let one = 400_000;
    let options = ServerOptions { adapter_memory: one, ..options() };
    let served = Served::with_adapters(options);
    let alone: Vec<String> = support::ADAPTERS
        .iter()
        .map(|name| served.complete(name, STORY, json!({ "max_tokens": 10 })))
        .collect();
    let is_over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watch = scope.spawn(|| {
            while !is_over.load(Ordering::SeqCst) {
                let (_, overview) = served.get("/adapters");
                let bytes = overview["cache"]["bytes"].as_u64().unwrap();
                assert!(bytes <= one, "{bytes} bytes are in memory");
            }
        });
        let found = together(24, |i| {
            served.complete(support::ADAPTERS[i % 3], STORY, json!({ "max_tokens": 10 }))
        });
        is_over.store(true, Ordering::SeqCst);
        watch.join().unwrap();
        found.iter().zip(alone.iter().cycle()).for_each(|(found, alone)| assert_eq!(found, alone));
    });
    let (_, metrics) = served.get_text("/metrics");
    let evictions =
        metrics.lines().find_map(|l| l.strip_prefix("polylora_adapter_evictions_total "));
    assert!(evictions.unwrap().parse::<u32>().unwrap() >= 3, "{metrics}");

    // One that never fits is told so, to who runs the server; and so is one that is damaged.
    let options = ServerOptions { adapter_memory: 1000, ..support::options() };
    let served = Served::with_adapters(options);
    let (status, answer) = served.post("/v1/completions", &request("shout", STORY, json!({})));
    assert_eq!((status, &answer["error"]["type"]), (500, &json!("server_error")));
    let (_, overview) = served.get("/adapters");
    let shout = &overview["adapters"][2];
    assert_eq!((&shout["name"], &shout["state"]), (&json!("shout"), &json!("failed")));
    assert!(shout["error"].as_str().unwrap().contains("--adapter-memory"), "{shout}");
}

#[test]
fn the_folder_is_looked_through_again() {
    let folder = adapter_folder();
    let options = ServerOptions {
        adapter_dir: Some(folder.path().to_owned()),
        allow_adapter_loading: true,
        ..options()
    };
    let served = Served::new(options);
    let short = json!({ "max_tokens": 12 });
    let [shout, pirate] =
        ["shout", "pirate"].map(|name| served.complete(name, STORY, short.clone()));
    // A new one, a changed one, and one that goes.
    copy_adapter("pirate", &folder.path().join("new"));
    copy_adapter("pirate", &folder.path().join("shout"));
    std::fs::remove_dir_all(folder.path().join("json")).unwrap();
    let names = |overview: &Value| {
        let adapters = overview["adapters"].as_array().unwrap().iter();
        adapters.map(|a| a["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let overview = served.wait_until(|overview| names(overview) == ["pirate", "shout", "new"]);
    let shouts = &overview["adapters"][1];
    assert_eq!(shouts["generation"], 2);
    assert_eq!(served.complete("new", STORY, short.clone()), pirate);
    assert_eq!(served.complete("shout", STORY, short), pirate);
    assert_ne!(shout, pirate);
    assert_eq!(served.post("/v1/completions", &request("json", STORY, json!({}))).0, 404);

    // One that was taken away is not found again, before its files are others.
    let unload = json!({ "lora_name": "new" });
    assert_eq!(served.post("/v1/unload_lora_adapter", &unload).0, 200);
    copy_adapter("pirate", &folder.path().join("newer"));
    served.wait_until(|overview| names(overview) == ["pirate", "shout", "newer"]);
    copy_adapter("shout", &folder.path().join("new"));
    served.wait_until(|overview| names(overview) == ["pirate", "shout", "new", "newer"]);
}
