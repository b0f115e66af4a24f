//! How each vocabulary of byte pairs cuts text into words before it merges within them.
//!
//! The names are those of `tokenizer.ggml.pre`; what each stands for are facts of llama.cpp's
//! `llama-vocab.cpp`, where later steps cut what earlier ones left. Where llama.cpp rewrote a
//! model's own expression for its regex engine, with other matches, its matches count.

/// A way to cut text into words, and what goes with it.
#[derive(Debug)]
pub(super) struct Pre {
    /// Its names in `tokenizer.ggml.pre`.
    pub(super) names: &'static [&'static str],
    /// Applied one after another, each to the pieces that the one before left.
    pub(super) steps: &'static [Step],
    /// What else is peculiar to it.
    pub(super) traits: Traits,
}

/// What a vocabulary does apart from cutting.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Traits {
    /// A word that is a token is that token, whatever its merges give.
    pub(super) whole_words: bool,
    /// Text begins with the token for that, where the file does not say.
    pub(super) add_bos: bool,
    /// Tokens hold UTF-8 with spaces as U+2581, not bytes in disguise.
    pub(super) plain: bool,
    /// A run of newlines that is a token is that token, and text always begins with `bos`.
    pub(super) gemma: bool,
}

/// One cut.
#[derive(Debug)]
pub(super) enum Step {
    /// Each match is a piece, and so is what stands between matches.
    Match(&'static str),
    /// Runs of ASCII digits are cut so that three follow each cut, or a multiple of it.
    Thousands,
    /// The same for all numbers, but what stands before a run goes with its first group.
    GroupedNumbers,
    /// White space without a newline at its end is cut into the largest powers of two up to 512.
    PowersOfTwo,
}

use Step::{GroupedNumbers, Match, PowersOfTwo, Thousands};

const NONE: Traits = Traits { whole_words: false, add_bos: false, plain: false, gemma: false };
const WHOLE: Traits = Traits { whole_words: true, ..NONE };
const WHOLE_BOS: Traits = Traits { add_bos: true, ..WHOLE };
const PLAIN: Traits = Traits { plain: true, ..NONE };

/// Any case, but of ASCII alone: `(?i)` would take the long s for an s.
macro_rules! contraction {
    () => {
        r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
    };
}

const GPT2: Step = Match(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)");
const LLAMA3: Step = Match(concat!(
    contraction!(),
    r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
));
const QWEN2: Step = Match(concat!(
    contraction!(),
    r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
));
/// Words with marks, any case, and the contraction after them: what is left of GPT-4o's
/// expression where all letters are of one case.
const CASELESS_WORDS_3: Step = Match(concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+",
    contraction!(),
    r"?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
));
const GPT4O: Step = Match(concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{L}--[a-z]]*[\p{L}--[A-Z]]+",
    contraction!(),
    r"?|[^\r\n\p{L}\p{N}]?[\p{L}--[a-z]]+[\p{L}--[A-Z]]*",
    contraction!(),
    r"?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
));
const DIGIT: Step = Match(r"\p{N}");
const UP_TO_3_DIGITS: Step = Match(r"\p{N}{1,3}");
const IDEOGRAPHS_AND_KANA: Step = Match(r"[一-龥぀-ゟ゠-ヿ]+");
/// Ideographs, as the models mean it, and by their expression all from U+0800 on; but no white
/// space, which llama.cpp has made ASCII by then.
const LATER_SCRIPTS: Step = Match(r"[[一-龥ࠀ-一가-\u{D7FF}]--\s]+");
const PUNCTUATION_THEN_WORD: Step = Match(concat!(
    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"##,
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
));
const NO_PUNCTUATION: Step =
    Match(r" ?[^(\s|.,!?\u{2026}\u{3002}\u{FF0C}\u{3001}\u{964}\u{6D4}\u{60C})]+");
const LINES: Step = Match(r"[^\n]+|\n+");

/// The ranges that llama.cpp calls Han, which begin and end at blocks, not at characters.
macro_rules! han {
    () => {
        concat!(
            r"\u{4E00}-\u{9FFF}\u{3400}-\u{4DBF}\u{20000}-\u{2A6DF}\u{2A700}-\u{2B73F}",
            r"\u{2B740}-\u{2B81F}\u{2B820}-\u{2CEAF}\u{2CEB0}-\u{2EBEF}\u{F900}-\u{FAFF}",
            r"\u{2F800}-\u{2FA1F}",
        )
    };
}

/// The way of a file that does not say: the first row.
pub(super) const DEFAULT: &str = "default";

/// The way of vocabularies of the kind `gemma4`, whatever they say.
pub(super) const GEMMA: &str = "gemma4";

/// Every way that is known.
pub(super) const PRE_TOKENIZERS: &[Pre] = &[
    Pre {
        names: &[DEFAULT],
        steps: &[Match(r"[\p{P}$+<=>^~|]+"), GPT2, Match(r"\p{N}+"), Match("[0-9][0-9][0-9]")],
        traits: NONE,
    },
    Pre {
        names: &[
            "llama-bpe",
            "llama3",
            "llama-v3",
            "falcon3",
            "falcon-h1",
            "pixtral",
            "midm-2.0",
            "lfm2",
            "jina-v5-nano",
        ],
        steps: &[LLAMA3],
        traits: WHOLE_BOS,
    },
    Pre { names: &["dbrx", "smaug-bpe", "chatglm-bpe"], steps: &[LLAMA3], traits: NONE },
    Pre { names: &["glm4", "glm5"], steps: &[LLAMA3], traits: WHOLE },
    Pre { names: &["jais-2"], steps: &[LLAMA3, PowersOfTwo], traits: NONE },
    Pre {
        names: &[
            "qwen2",
            "deepseek-r1-qwen",
            "kormo",
            "f2llmv2",
            "megrez",
            "stablelm2",
            "hunyuan",
            "solar-open",
            "grok-2",
        ],
        steps: &[QWEN2],
        traits: NONE,
    },
    Pre {
        names: &["qwen35"],
        steps: &[Match(concat!(
            contraction!(),
            r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+",
            r"|\s+(?!\S)|\s+",
        ))],
        traits: NONE,
    },
    Pre { names: &["laguna"], steps: &[LINES, QWEN2], traits: NONE },
    Pre {
        names: &["ufakzeka"],
        steps: &[Match(concat!(
            r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+",
            r"|\s+(?!\S)|\s+",
        ))],
        traits: NONE,
    },
    Pre {
        names: &["seed-coder"],
        steps: &[Match(concat!(
            contraction!(),
            r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+",
        ))],
        traits: NONE,
    },
    Pre {
        names: &["bailingmoe", "bailingmoe2", "llada-moe"],
        steps: &[Match(concat!(
            r"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}",
            r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
        ))],
        traits: NONE,
    },
    Pre {
        names: &["exaone-moe"],
        steps: &[Match(concat!(
            contraction!(),
            r"|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}",
            r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+",
        ))],
        traits: NONE,
    },
    Pre {
        names: &["minicpm5"],
        steps: &[
            UP_TO_3_DIGITS,
            Match(concat!(
                contraction!(),
                r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+",
                r"|\s+(?!\S)|\s+",
            )),
        ],
        traits: WHOLE,
    },
    Pre {
        names: &[
            "gpt-2",
            "phi-2",
            "jina-es",
            "jina-de",
            "gigachat",
            "jina-v2-es",
            "jina-v2-de",
            "a.x-4.0",
            "mellum",
            "modern-bert",
            "jina-v1-en",
            "jina-v2-code",
            "roberta-bpe",
            "mpt",
            "olmo",
            "jais",
            "trillion",
            "granite-docling",
            "exaone4",
        ],
        steps: &[GPT2],
        traits: NONE,
    },
    Pre {
        names: &[
            "starcoder",
            "refact",
            "command-r",
            "smollm",
            "codeshell",
            "exaone",
            "minerva-7b",
            "mellum2",
        ],
        steps: &[DIGIT, GPT2],
        traits: NONE,
    },
    Pre {
        names: &["falcon"],
        steps: &[Match(r"[\p{P}$+<=>^~|`]+"), GPT2, Match("[0-9][0-9][0-9]")],
        traits: NONE,
    },
    Pre {
        names: &["deepseek-llm"],
        steps: &[
            Match("[\r\n]"),
            Match(concat!(
                r"\s?[A-Za-z\u{B5}\u{C0}-\u{D6}\u{D8}-\u{F6}\u{F8}-\u{1BA}\u{1BC}-\u{1BF}",
                r"\u{1C4}-\u{293}\u{295}-\u{2AF}\u{370}-\u{373}\u{376}\u{377}\u{37B}-\u{37D}",
                r"\u{37F}\u{386}\u{388}-\u{38A}\u{38C}\u{38E}-\u{3A1}\u{3A3}-\u{3F5}",
                r"\u{3F7}-\u{481}\u{48A}-\u{52F}\u{531}-\u{556}\u{10A0}-\u{10C5}",
                r"\u{13A0}-\u{13F5}\u{13F8}-\u{13FD}\u{1C90}-\u{1CBA}\u{1CBD}-\u{1CBF}",
                r"\u{1D00}-\u{1D2B}\u{1D6B}-\u{1D77}\u{1D79}-\u{1D9A}\u{1E00}-\u{1F15}",
                r"\u{1F18}-\u{1F1D}\u{1F20}-\u{1F45}\u{1F48}-\u{1F4D}\u{1F50}-\u{1F57}\u{1F59}",
                r"\u{1F5B}\u{1F5D}\u{1F5F}-\u{1F7D}\u{1F80}-\u{1FB4}\u{1FB6}-\u{1FBC}\u{1FBE}",
                r"\u{1FC2}-\u{1FC4}\u{1FC6}-\u{1FCC}\u{1FD0}-\u{1FD3}\u{1FD6}-\u{1FDB}",
                r"\u{1FE0}-\u{1FEC}\u{1FF2}-\u{1FF4}\u{1FF6}-\u{1FFC}\u{2102}\u{2107}",
                r"\u{210A}-\u{2113}\u{2115}\u{2119}-\u{211D}\u{2124}\u{2126}\u{2128}",
                r"\u{212A}-\u{212D}\u{212F}-\u{2134}\u{2139}\u{213C}-\u{213F}\u{2145}-\u{2149}",
                r"\u{214E}\u{2183}\u{2184}\u{2C00}-\u{2C7B}\u{2C7E}-\u{2CE4}\u{2CEB}-\u{2CEE}",
                r"\u{2CF2}\u{2CF3}\u{A640}-\u{A66D}\u{A680}-\u{A69B}\u{A722}-\u{A76F}",
                r"\u{A771}-\u{A787}\u{A78B}-\u{A78E}\u{AB70}-\u{ABBF}\u{FB00}-\u{FB06}",
                r"\u{FB13}-\u{FB17}\u{FF21}-\u{FF3A}\u{FF41}-\u{FF5A}\u{10400}-\u{1044F}",
                r"\u{104B0}-\u{104D3}\u{104D8}-\u{104FB}\u{10C80}-\u{10CB2}\u{10CC0}-\u{10CF2}",
                r"\u{118A0}-\u{118DF}\u{1E900}-\u{1E943}]+",
            )),
            // The model's own range begins at U+3000, which llama.cpp has made a space by then.
            Match(r"\s?[!-/:-~！-／：-～‘-‟、-。]+"),
            Match(r"\s+$"),
            LATER_SCRIPTS,
            Match(r"\p{N}+"),
        ],
        traits: NONE,
    },
    Pre {
        names: &["deepseek-coder"],
        steps: &[Match("[\r\n]"), Match(r"\s?\p{L}+"), Match(r"\s?\p{P}+"), LATER_SCRIPTS, DIGIT],
        traits: NONE,
    },
    Pre {
        names: &["deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"],
        steps: &[UP_TO_3_DIGITS, IDEOGRAPHS_AND_KANA, PUNCTUATION_THEN_WORD],
        traits: NONE,
    },
    Pre {
        names: &["spark2_5"],
        steps: &[
            UP_TO_3_DIGITS,
            IDEOGRAPHS_AND_KANA,
            Match(concat!(
                r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"##,
                r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+|[\r\n]|\s+(?!\S)|\s+",
            )),
            DIGIT,
        ],
        traits: NONE,
    },
    Pre {
        names: &["afmoe"],
        steps: &[
            GroupedNumbers,
            Match(concat!(
                r"[\u{4E00}-\u{9FFF}\u{3400}-\u{4DBF}\u{8C48}-\u{FAFF}\u{3040}-\u{30FF}\u{FF65}-\u{FF9F}",
                r"\u{2F00}-\u{2FDF}\u{E40}-\u{EFF}\u{1780}-\u{17FF}\u{1000}-\u{109F}",
                r"\u{AA60}-\u{AA7F}\u{A9E0}-\u{A9FF}\u{AC00}-\u{D7AF}\u{1100}-\u{11FF}]+",
            )),
            PUNCTUATION_THEN_WORD,
        ],
        traits: NONE,
    },
    Pre {
        names: &["youtu"],
        steps: &[
            Match(concat!(
                "[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+",
                "|[一-龥぀-ゟ゠-ヿ]+",
            )),
            Match(concat!(
                r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+",
                contraction!(),
                r"?|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
            )),
        ],
        traits: WHOLE,
    },
    Pre {
        names: &["tekken"],
        steps: &[Match(concat!(
            r"[^\r\n\p{L}\p{N}]?[\p{L}--[a-z]]*[\p{L}--[A-Z]]+",
            r"|[^\r\n\p{L}\p{N}]?[\p{L}--[a-z]]+[\p{L}--[A-Z]]*",
            r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ))],
        traits: WHOLE_BOS,
    },
    Pre {
        names: &["gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"],
        steps: &[GPT4O],
        traits: NONE,
    },
    Pre {
        names: &["granite-embed-multi-97m"],
        steps: &[Match(concat!(
            r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}--[a-z]]*[\p{L}\p{M}--[A-Z]]+",
            contraction!(),
            r"?|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}--[a-z]]+[\p{L}\p{M}--[A-Z]]*",
            contraction!(),
            r"?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ))],
        traits: WHOLE,
    },
    Pre {
        names: &["tiny_aya", "cohere2moe"],
        steps: &[GroupedNumbers, CASELESS_WORDS_3],
        traits: NONE,
    },
    Pre {
        names: &["kimi-k2"],
        steps: &[Match(concat!(
            "[",
            han!(),
            r"]+|[^\r\n\p{L}\p{N}]?[\p{L}--[",
            han!(),
            "]]+",
            contraction!(),
            r"?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ))],
        traits: NONE,
    },
    Pre { names: &["superbpe"], steps: &[Match(r"\p{N}+"), Thousands], traits: NONE },
    Pre { names: &["poro-chat", "bloom", "gpt3-finnish"], steps: &[NO_PUNCTUATION], traits: NONE },
    Pre { names: &["viking"], steps: &[NO_PUNCTUATION, DIGIT], traits: NONE },
    Pre {
        names: &["chameleon"],
        steps: &[
            Match("<sentinel:[0-9]+>"),
            Match("IMGIMG[A-I]{1,4}Z"),
            Match(r"[\t\n]|    |  "),
            DIGIT,
            Match(r"[\p{P}!-/:-@\[-`{-~]"),
            GPT2,
        ],
        traits: Traits { add_bos: true, ..NONE },
    },
    Pre {
        names: &[GEMMA, "granite-embed-multi-311m"],
        steps: &[LINES],
        traits: Traits { gemma: true, add_bos: true, ..PLAIN },
    },
    Pre { names: &["sarvam-moe"], steps: &[LINES], traits: PLAIN },
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn names_are_unique() {
        let names = PRE_TOKENIZERS.iter().flat_map(|pre| pre.names);
        let mut seen = HashSet::new();
        names.for_each(|name| assert!(seen.insert(name), "{name} twice"));
    }
}
