//! What was read for one text and is used for another: shared where all is the same, and nowhere
//! else.

use polylora_adapter::{AdapterSpec, OnMismatch, load};
use polylora_engine::{
    Completion, CompletionOptions, Engine, EngineOptions, Input, LoadedAdapter, Model, PAGE,
    PrefixCache, Row, SamplingParams, Tokenizer, Wanted, Way,
};
use polylora_file::Gguf;
use std::path::PathBuf;
use std::sync::Arc;

type Adapters = Vec<Arc<LoadedAdapter>>;

const CONTEXT: usize = 512;

struct Setup {
    gguf: Gguf,
    engine: Engine,
}

impl Setup {
    fn new() -> Setup {
        let gguf = Gguf::open(&embedded("valley-q4_k_m.gguf")).unwrap();
        let options = EngineOptions { exact: true, ..EngineOptions::default() };
        let engine = Engine::new(Arc::new(Model::open(&gguf).unwrap()), &options).unwrap();
        Setup { gguf, engine }
    }

    /// An adapter under a name that may be another's.
    fn adapter(&self, folder: &str, name: &str, scale: f32) -> Arc<LoadedAdapter> {
        let spec = AdapterSpec { name: name.to_owned(), path: embedded(folder), scale };
        self.engine.load_adapter(&load(&spec, &self.gguf, OnMismatch::Fail).unwrap()).unwrap()
    }

    /// The logits after all of `tokens`, read into what `cache` knows of them.
    fn logits(&mut self, cache: &mut PrefixCache, adapters: &Adapters, tokens: &[u32]) -> Vec<f32> {
        let mut sequence = cache.begin(&self.engine, CONTEXT, adapters, tokens);
        let rest = &tokens[sequence.len()..];
        let input = Input {
            sequence: &mut sequence,
            tokens: rest,
            adapters,
            logits: Wanted::Last,
            way: Way::Many,
        };
        let logits = self.engine.forward(&mut [input]).unwrap();
        cache.remember(adapters, tokens, &sequence);
        logits.row(0).to_vec()
    }
}

fn embedded(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../polylora/embedded").join(name)
}

/// A text of so many tokens that begins like others of the same `start`.
fn text(start: u32, len: usize) -> Vec<u32> {
    (0..len as u32).map(|i| 300 + (start + 7 * i) % 900).collect()
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// Every order of three requests.
const ORDERS: [[usize; 3]; 6] = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];

#[test]
fn no_order_of_requests_gives_one_adapter_the_keys_of_another() {
    let mut setup = Setup::new();
    // One name, other contents; one content, other scales; several and one of them.
    let (shout, pirate) = (setup.adapter("shout", "x", 1.0), setup.adapter("pirate", "x", 1.0));
    let half = setup.adapter("shout", "x", 0.5);
    let groups: [[Adapters; 3]; 3] = [
        [vec![shout.clone()], vec![pirate.clone()], vec![]],
        [vec![shout.clone()], vec![half.clone()], vec![shout.clone(), half]],
        [vec![shout.clone(), pirate.clone()], vec![pirate], vec![shout]],
    ];
    let tokens = text(0, 3 * PAGE + 5);
    for group in groups {
        let alone = group
            .each_ref()
            .map(|adapters| setup.logits(&mut PrefixCache::new(), adapters, &tokens));
        let differ = |a: usize, b: usize| largest_difference(&alone[a], &alone[b]);
        assert!(differ(0, 1) > 1e-2 && differ(0, 2) > 1e-2 && differ(1, 2) > 1e-2);
        for order in ORDERS {
            let mut cache = PrefixCache::new();
            // Twice each: what the second finds is the first's.
            for which in order.into_iter().chain(order) {
                let found = setup.logits(&mut cache, &group[which], &tokens);
                let off = largest_difference(&found, &alone[which]);
                assert!(off < 1e-3, "{which} in {order:?} is off by {off}");
            }
            assert_eq!(cache.pages(), 9, "three pages each");
        }
    }
}

#[test]
fn the_same_content_and_scale_share_under_any_name() {
    let mut setup = Setup::new();
    let (one, other) = (setup.adapter("shout", "one", 1.0), setup.adapter("shout", "other", 1.0));
    let mut cache = PrefixCache::new();
    let tokens = text(0, 2 * PAGE + 1);
    setup.logits(&mut cache, &vec![one], &tokens);
    let before = setup.engine.pages();
    let sequence = cache.begin(&setup.engine, CONTEXT, &[other], &tokens);
    assert_eq!(sequence.len(), 2 * PAGE);
    assert_eq!(setup.engine.pages(), before, "shared pages are no more pages");
    // Another context may ask for other rotations.
    assert_eq!(cache.begin(&setup.engine, CONTEXT - 1, &[], &tokens).len(), 0);
}

#[test]
fn only_whole_pages_that_are_the_same_are_shared() {
    let mut setup = Setup::new();
    let mut cache = PrefixCache::new();
    let known = text(0, 2 * PAGE);
    setup.logits(&mut cache, &vec![], &known);
    let mut begin = |tokens: &[u32]| cache.begin(&setup.engine, CONTEXT, &[], tokens).len();
    // The last token is read in any case, for its logits.
    assert_eq!(begin(&known), PAGE);
    assert_eq!(begin(&[&known[..], &[5]].concat()), 2 * PAGE);
    let mut other = [&known[..], &[5]].concat();
    other[PAGE + 3] += 1;
    assert_eq!(begin(&other), PAGE);
    other[PAGE - 1] += 1;
    assert_eq!(begin(&other), 0);
    assert_eq!(begin(&known[..PAGE]), 0);
    assert_eq!(begin(&[]), 0);
}

#[test]
fn sequences_that_share_pages_do_not_write_into_them() {
    let mut setup = Setup::new();
    let mut cache = PrefixCache::new();
    let start = text(0, 2 * PAGE);
    let ends = [text(1, 40), text(2, 40)].map(|end| [&start[..], &end].concat());
    let alone = ends.each_ref().map(|text| setup.logits(&mut PrefixCache::new(), &vec![], text));
    setup.logits(&mut cache, &vec![], &start);
    // Cut within a shared page, and go on otherwise.
    let mut cut = cache.begin(&setup.engine, CONTEXT, &[], &ends[0]);
    cut.truncate(PAGE + 10);
    let strange = text(9, 30);
    let input = Input {
        sequence: &mut cut,
        tokens: &strange,
        adapters: &[],
        logits: Wanted::None,
        way: Way::Many,
    };
    setup.engine.forward(&mut [input]).unwrap();
    for (text, alone) in ends.iter().zip(&alone) {
        let off = largest_difference(&setup.logits(&mut cache, &vec![], text), alone);
        assert!(off < 1e-3, "{off}");
    }
}

#[test]
fn what_was_not_used_for_longest_goes_first_and_what_is_in_use_stays() {
    let mut setup = Setup::new();
    let mut cache = PrefixCache::new();
    let texts: Vec<Vec<u32>> = (0..3).map(|start| text(start, 2 * PAGE + 1)).collect();
    for tokens in &texts {
        setup.logits(&mut cache, &vec![], tokens);
    }
    assert_eq!((cache.pages(), setup.engine.pages()), (6, 6));
    let held = cache.begin(&setup.engine, CONTEXT, &[], &texts[1]);
    drop(cache.begin(&setup.engine, CONTEXT, &[], &texts[0]));
    let known = |cache: &mut PrefixCache, which: usize| {
        cache.begin(&setup.engine, CONTEXT, &[], &texts[which]).len() / PAGE
    };
    // The end of a text goes before its beginning.
    assert_eq!(cache.evict(1), 1);
    assert_eq!(known(&mut cache, 2), 1);
    // That made the third the youngest; the second is held.
    assert_eq!(cache.evict(2), 2);
    assert_eq!([0, 1, 2].map(|which| known(&mut cache, which)), [0, 2, 1]);
    assert_eq!(cache.evict(100), 1);
    assert_eq!([0, 1, 2].map(|which| known(&mut cache, which)), [0, 2, 0]);
    assert_eq!(setup.engine.pages(), 2);
    drop(held);
    assert_eq!(cache.evict(100), 2);
    assert_eq!((cache.pages(), setup.engine.pages()), (0, 0));
}

#[test]
fn a_row_that_lost_its_sequence_goes_on_as_if_it_had_not() {
    let mut setup = Setup::new();
    let tokenizer = Tokenizer::from_gguf(&setup.gguf).unwrap();
    let prompt = tokenizer.encode("Once upon a time there was a fox", true, true);
    let mut answer = |losses: &[usize]| {
        let options = CompletionOptions {
            params: SamplingParams { seed: Some(5), ..SamplingParams::default() },
            max_tokens: Some(20),
            logprobs: Some(2),
            ..CompletionOptions::default()
        };
        let vocab_size = setup.engine.model().vocab_size();
        let completion = Completion::new(&tokenizer, vocab_size, &prompt, options).unwrap();
        let sequence = setup.engine.sequence(CONTEXT);
        let mut row = Row::new(sequence, prompt.clone(), Vec::new(), completion);
        row.score_prompt(1);
        row.read_at_most(3);
        let mut steps = 0;
        while !row.is_done() {
            setup.engine.advance([&mut row]).unwrap();
            steps += 1;
            if losses.contains(&steps) && !row.is_done() {
                row.set_sequence(setup.engine.sequence(CONTEXT));
            }
        }
        (row.take_text(), row.take_scored().len(), row.prompt_scores().to_vec())
    };
    let (text, scored, prompt_scores) = answer(&[]);
    assert_eq!((scored, prompt_scores.len()), (20, prompt.len() - 1));
    let (again, scored_again, prompt_again) = answer(&[2, 5, 12, 13]);
    assert_eq!((again, scored_again), (text, scored));
    for (a, b) in prompt_scores.iter().zip(&prompt_again) {
        assert_eq!(a.token, b.token);
        assert!((a.logprob - b.logprob).abs() < 1e-3);
    }
}

#[test]
fn scores_are_those_of_the_logits_and_hidden_states_lead_to_them() {
    let mut setup = Setup::new();
    let tokens = text(3, 9);
    let mut sequence = setup.engine.sequence(CONTEXT);
    let input = Input {
        sequence: &mut sequence,
        tokens: &tokens,
        adapters: &[],
        logits: Wanted::All,
        way: Way::Many,
    };
    let logits = setup.engine.forward(&mut [input]).unwrap();
    assert_eq!(logits.len(), 9);
    let states = |setup: &mut Setup, logits| {
        let mut sequence = setup.engine.sequence(CONTEXT);
        let input = Input {
            sequence: &mut sequence,
            tokens: &tokens,
            adapters: &[],
            logits,
            way: Way::Many,
        };
        setup.engine.hidden_states(&mut [input]).unwrap()
    };
    let (all, last) = (states(&mut setup, Wanted::All), states(&mut setup, Wanted::Last));
    assert_eq!((all.len(), last.len()), (9 * 256, 256));
    assert!(largest_difference(&all[8 * 256..], &last) < 1e-4);
    assert!(states(&mut setup, Wanted::None).is_empty());
    // The head is the embedding's transpose, here of a tied model or one of its own: its row times
    // the state is the logit.
    let head = setup.gguf.tensor("output.weight").or(setup.gguf.tensor("token_embd.weight"));
    let (head, token) = (head.unwrap(), 777);
    let mut row = vec![0.0; 256];
    head.dequantize_rows(token..token + 1, &mut row).unwrap();
    let product: f32 = row.iter().zip(&last).map(|(weight, state)| weight * state).sum();
    assert!((product - logits.row(8)[token]).abs() < 1e-3);
}

/// The logits of each of some texts: a prompt, then single tokens, all texts in one batch, their
/// prompts cut as `cuts` says and beginning at different steps.
fn together(
    engine: &mut Engine,
    texts: &[(Vec<u32>, Vec<u32>, Adapters)],
    cuts: &[usize],
) -> Vec<Vec<f32>> {
    let mut sequences: Vec<_> = texts.iter().map(|_| engine.sequence(CONTEXT)).collect();
    let mut logits = vec![Vec::new(); texts.len()];
    for step in 0.. {
        let mut inputs = Vec::new();
        let mut whose = Vec::new();
        for (number, ((prompt, written, adapters), sequence)) in
            texts.iter().zip(&mut sequences).enumerate()
        {
            let done = sequence.len();
            if step < number || done == prompt.len() + written.len() {
                continue;
            }
            let cut = cuts[(step + number) % cuts.len()];
            let (tokens, way) = match prompt.get(done..) {
                Some(rest) if !rest.is_empty() => (&rest[..rest.len().min(cut)], Way::Many),
                _ => (&written[done - prompt.len()..][..1], Way::Few),
            };
            inputs.push(Input { sequence, tokens, adapters, logits: Wanted::All, way });
            whose.push((number, tokens.len()));
        }
        if inputs.is_empty() {
            return logits;
        }
        let found = engine.forward(&mut inputs).unwrap();
        let mut row = 0;
        for (number, count) in whose {
            (0..count).for_each(|i| logits[number].extend(found.row(row + i)));
            row += count;
        }
    }
    unreachable!("steps do not end")
}

#[test]
fn what_a_text_gives_does_not_depend_on_the_batch_to_the_bit() {
    // The fast way, where weights and activations are multiplied as bytes.
    let gguf = Gguf::open(&embedded("valley-q4_k_m.gguf")).unwrap();
    let engine =
        Engine::new(Arc::new(Model::open(&gguf).unwrap()), &EngineOptions::default()).unwrap();
    let mut setup = Setup { gguf, engine };
    let [shout, pirate, json] =
        ["shout", "pirate", "json"].map(|name| setup.adapter(name, name, 1.0));
    let adapters: [Adapters; 4] = [vec![], vec![shout.clone()], vec![pirate], vec![json, shout]];
    let texts: Vec<_> = (0..9)
        .map(|i| {
            let prompt = text(i, [1, 2, 3, 17, 64, 65, 130, 200, 33][i as usize]);
            (prompt, text(50 + i, 12), adapters[i as usize % 4].clone())
        })
        .collect();
    let alone: Vec<Vec<f32>> = (texts.iter())
        .map(|text| together(&mut setup.engine, std::slice::from_ref(text), &[512]).remove(0))
        .collect();
    for cuts in [&[512][..], &[1], &[7, 64, 3], &[100, 1, 31]] {
        let found = together(&mut setup.engine, &texts, cuts);
        for (number, (found, alone)) in found.iter().zip(&alone).enumerate() {
            let same = found.iter().zip(alone).all(|(a, b)| a.to_bits() == b.to_bits());
            let off = largest_difference(found, alone);
            assert!(same && found.len() == alone.len(), "text {number}, {cuts:?}: off by {off}");
        }
    }
}
