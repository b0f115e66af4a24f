//! A vocabulary of bytes, in the form of GPT-2's: small, complete, and read by every runtime.

use polylora_file::{Array, Metadata, Value};

/// Tokens beside the bytes: enough of them that cutting a text is more than taking its bytes.
const MERGES: [&str; 7] = ["t h", "i n", "th e", "a n", "Ġ the", "an d", "Ġ and"];

/// What marks the parts of a conversation, and the end of what the model says.
const SPECIAL: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];

/// ChatML, without a system message of its own.
const CHAT_TEMPLATE: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + \
    '\\n' + message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}\
    {% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

/// Tokens that this vocabulary needs at least.
pub(super) const LEAST: usize = 256 + MERGES.len() + SPECIAL.len();

/// `tokenizer.token_type` as ggml counts: an ordinary token, one that controls, one never used.
const NORMAL: i32 = 1;
const CONTROL: i32 = 3;
const UNUSED: i32 = 5;

/// Describes `size` tokens, at least [`LEAST`]: bytes, merges, special ones, and unused ones that
/// fill the rest.
pub(super) fn describe(metadata: &mut Metadata, size: usize) {
    let mut tokens: Vec<(String, i32)> = Vec::with_capacity(size);
    tokens.extend(letters().map(|letter| (letter.to_string(), NORMAL)));
    tokens.extend(MERGES.map(|merge| (merge.replace(' ', ""), NORMAL)));
    let special = tokens.len() as u32;
    tokens.extend(SPECIAL.map(|token| (token.to_owned(), CONTROL)));
    tokens.extend((tokens.len()..size).map(|id| (format!("<unused{id}>"), UNUSED)));

    metadata.insert("tokenizer.ggml.model", "gpt2".into());
    metadata.insert("tokenizer.ggml.pre", "gpt-2".into());
    let mut array = |key: &str, values: Vec<Value>| {
        let array = Array::new(&values).expect("the values have one type");
        metadata.insert(key, Value::Array(array));
    };
    let types = tokens.iter().map(|&(_, ty)| Value::I32(ty));
    array("tokenizer.ggml.token_type", types.collect());
    array("tokenizer.ggml.tokens", tokens.into_iter().map(|(text, _)| text.into()).collect());
    array("tokenizer.ggml.merges", MERGES.map(Value::from).to_vec());
    metadata.insert("tokenizer.ggml.bos_token_id", Value::U32(special));
    metadata.insert("tokenizer.ggml.eos_token_id", Value::U32(special + 2));
    metadata.insert("tokenizer.ggml.add_bos_token", Value::Bool(false));
    metadata.insert("tokenizer.chat_template", CHAT_TEMPLATE.into());
}

/// The letter that stands for each byte in GPT-2's vocabulary: itself where it can be seen, else
/// the next of those from U+0100 on.
fn letters() -> impl Iterator<Item = char> {
    let mut hidden = 0x100..;
    (0..=u8::MAX).map(move |byte| match byte {
        b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => char::from(byte),
        _ => hidden.next().and_then(char::from_u32).expect("64 letters follow U+0100"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_byte_has_a_letter_of_its_own() {
        let letters: Vec<char> = letters().collect();
        assert_eq!(letters.iter().collect::<HashSet<_>>().len(), 256);
        assert_eq!((letters[b' ' as usize], letters[b'\n' as usize]), ('Ġ', 'Ċ'));
        assert_eq!((letters[b'A' as usize], letters[0xad]), ('A', 'Ń'));
    }

    #[test]
    fn merges_are_made_of_what_is_there() {
        let mut known: HashSet<String> = letters().map(String::from).collect();
        for merge in MERGES {
            let (left, right) = merge.split_once(' ').unwrap();
            assert!(known.contains(left) && known.contains(right), "{merge}");
            known.insert(merge.replace(' ', ""));
        }
    }
}
