"""What llama.cpp makes of texts with its own test vocabularies: the tokenizer's reference data.

    python tokenizer_cases.py VOCABULARIES OUT
reads VOCABULARIES/ggml-vocab-*.gguf (models/ in llama.cpp's sources) and writes
    OUT/<vocabulary>.gguf.zst   the vocabulary, with the program zstd
    OUT/<vocabulary>.json       special tokens, and the ids of OUT/texts.json
    OUT/pre.json                the ids of the same texts with gpt-2's vocabulary under each name of
                                tokenizer.ggml.pre, where they are not the same as under gpt-2
"""

import ctypes
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import gguf
import llama_cpp

VOCABULARIES = [
    "llama-spm",
    "llama-bpe",
    "gpt-2",
    "qwen2",
    "phi-3",
    "deepseek-coder",
    "falcon",
    "starcoder",
    "deepseek-llm",
    "mpt",
    "gemma-4",
]

# One name of each row of the table in pre.rs, but for those that only make sense with tokens
# that hold UTF-8.
PRE = [
    "default",
    "llama-bpe",
    "dbrx",
    "glm4",
    "jais-2",
    "qwen2",
    "qwen35",
    "laguna",
    "ufakzeka",
    "seed-coder",
    "bailingmoe",
    "exaone-moe",
    "minicpm5",
    "gpt-2",
    "starcoder",
    "falcon",
    "deepseek-llm",
    "deepseek-coder",
    "deepseek-v3",
    "spark2_5",
    "afmoe",
    "youtu",
    "tekken",
    "gpt-4o",
    "granite-embed-multi-97m",
    "tiny_aya",
    "kimi-k2",
    "superbpe",
    "poro-chat",
    "viking",
    "chameleon",
]


@ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
def quiet(_level, _text, _data):
    pass


class Vocabulary:
    def __init__(self, path):
        parameters = llama_cpp.llama_model_default_params()
        parameters.vocab_only = True
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), parameters)
        self.vocab = llama_cpp.llama_model_get_vocab(self.model)

    def tokenize(self, text, add_special, parse_special):
        text = text.encode()
        ids = (ctypes.c_int * (len(text) + 16))()
        count = llama_cpp.llama_tokenize(
            self.vocab, text, len(text), ids, len(ids), add_special, parse_special
        )
        assert count >= 0
        return ids[:count]

    def all(self, texts):
        """Ids with special tokens parsed and added, and without, where that differs."""
        return [[self.tokenize(text, on, on) for on in (True, False)] for text in texts]

    def special(self):
        tokens = range(llama_cpp.llama_vocab_n_tokens(self.vocab))
        return {
            "bos": llama_cpp.llama_vocab_bos(self.vocab),
            "eos": llama_cpp.llama_vocab_eos(self.vocab),
            "end_of_generation": [
                id for id in tokens if llama_cpp.llama_vocab_is_eog(self.vocab, id)
            ],
        }


def with_pre(source, target, pre):
    """Copies a vocabulary with another name of how it cuts words."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, reader.fields["general.architecture"].contents())
    for key, field in reader.fields.items():
        if key == "tokenizer.ggml.pre":
            writer.add_string(key, pre)
        elif not key.startswith("GGUF.") and key != "general.architecture":
            writer.add_key_value(key, field.contents(), field.types[0], field.types[-1])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def write(path, value):
    # One case a line.
    lines = json.dumps(value, indent=None, separators=(",", ":")).replace(']],[[', ']],\n[[')
    path.write_text(lines.replace(']],"', ']],\n"') + "\n")


def main():
    source, out = Path(sys.argv[1]), Path(sys.argv[2])
    llama_cpp.llama_log_set(quiet, None)
    texts = json.loads((out / "texts.json").read_text())
    for name in VOCABULARIES:
        path = source / f"ggml-vocab-{name}.gguf"
        packed = out / f"{name}.gguf.zst"
        subprocess.run(["zstd", "--ultra", "-22", "-qf", path, "-o", packed], check=True)
        vocabulary = Vocabulary(path)
        write(out / f"{name}.json", vocabulary.special() | {"ids": vocabulary.all(texts)})

    cuts = {}
    with tempfile.TemporaryDirectory() as folder:
        for pre in PRE:
            path = Path(folder) / f"{pre}.gguf"
            with_pre(source / "ggml-vocab-gpt-2.gguf", path, pre)
            vocabulary = Vocabulary(path)
            cuts[pre] = [vocabulary.tokenize(text, False, False) for text in texts]
    write(out / "pre.json", cuts)


if __name__ == "__main__":
    main()
