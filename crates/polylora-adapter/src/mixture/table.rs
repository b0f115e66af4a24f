//! The recipes: for each its names, its main type and its exceptions.
//!
//! The exceptions are llama.cpp's, found by its authors by trying. What they have in common: the
//! values of attention and the way back from the hidden layer (`ffn_down`) suffer most from
//! rounding, the first layers more than later ones, and the head's errors reach the output
//! unsoftened.

use super::rule::{Role, Rule, When};
use Role::*;
use When::*;
use polylora_quant::GgmlType::{self, *};

/// A recipe.
#[derive(Debug)]
pub(super) struct Mixture {
    /// llama.cpp's name for it, and others that mean the same.
    pub(super) names: &'static [&'static str],
    /// The value of `general.file_type`.
    pub(super) file_type: u32,
    /// The main type.
    pub(super) ty: GgmlType,
    pub(super) family: Family,
    /// The first that applies counts, after those of [`FIRST_RULES`] and of the family.
    pub(super) rules: &'static [Rule],
    /// What is special about it, for a list of recipes.
    pub(super) about: &'static str,
}

/// Recipes with rules in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    /// No rules at all.
    Pure,
    Usual,
    /// One to two and a half bits a weight.
    TwoBit,
}

impl Family {
    pub(super) fn rules(self) -> &'static [Rule] {
        match self {
            Family::Pure => &[],
            Family::Usual => USUAL_RULES,
            Family::TwoBit => TWO_BIT_RULES,
        }
    }
}

const fn rule(role: Role, when: &'static [When], ty: GgmlType) -> Rule {
    Rule { role: Some(role), when, ty }
}

const fn any(when: &'static [When], ty: GgmlType) -> Rule {
    Rule { role: None, when, ty }
}

/// Before all others.
pub(super) const FIRST_RULES: &[Rule] =
    &[rule(GlmNarrow, &[], Q8_0), rule(Head, &[Falcon], Q8_0), rule(Head, &[PartialBlock], Q8_0)];

/// After all others.
pub(super) const LAST_RULES: &[Rule] = &[rule(Head, &[], Q6_K)];

/// Mixtral's attention is small beside its eight experts.
const USUAL_RULES: &[Rule] =
    &[rule(AttentionV, &[Experts(8)], Q8_0), rule(AttentionK, &[Experts(8)], Q8_0)];

const TWO_BIT_RULES: &[Rule] = &[
    rule(Head, &[], Q5_K),
    rule(AttentionV, &[SharedHeads], Q4_K),
    rule(AttentionV, &[ExpertsFrom(4)], Q4_K),
    rule(AttentionK, &[Experts(8)], Q4_K),
    rule(AttentionOutput, &[Experts(8)], Q5_K),
];

/// Up to 2.3 bits a weight, together with [`TWO_BIT_RULES`].
const TO_IQ2_XS: &[Rule] = &[
    rule(Embedding, &[], Q2_K),
    rule(AttentionV, &[], Q2_K),
    rule(FfnDown, &[FirstPart(8)], Q2_K),
];

/// The same, with 1.5 to 1.75 bits a weight.
const IQ1: &[Rule] = &[
    rule(Embedding, &[], Q2_K),
    rule(AttentionV, &[], Q2_K),
    rule(FfnDown, &[FirstPart(8)], Q2_K),
    rule(AttentionOutput, &[], IQ2_XXS),
];

/// From 2.5 bits a weight.
const FROM_IQ2_S: &[Rule] = &[
    rule(Embedding, &[], IQ3_S),
    rule(AttentionV, &[], IQ3_S),
    rule(FfnDown, &[FirstPart(8)], IQ3_S),
    rule(AttentionOutput, &[], IQ3_S),
];

/// Types so coarse that the embeddings take another.
const COARSE: &[Rule] = &[rule(Embedding, &[], Q4_K)];

const IQ4: &[Rule] = &[
    rule(AttentionV, &[SharedHeads], Q5_K),
    rule(FfnDown, &[FirstPart(8), NoImatrix], Q5_K),
    rule(AttentionOutput, &[Experts(8)], Q5_K),
];

/// Every recipe. The wider types come first, and of one type the mixture with more bits.
pub(super) static TABLE: &[Mixture] = &[
    Mixture {
        names: &["F32"],
        file_type: 0,
        ty: F32,
        family: Family::Pure,
        rules: &[],
        about: "nothing is lost",
    },
    Mixture {
        names: &["F16"],
        file_type: 1,
        ty: F16,
        family: Family::Pure,
        rules: &[],
        about: "11 bits of precision, up to 65504",
    },
    Mixture {
        names: &["BF16"],
        file_type: 32,
        ty: BF16,
        family: Family::Pure,
        rules: &[],
        about: "8 bits of precision, the range of F32",
    },
    Mixture {
        names: &["Q8_0"],
        file_type: 7,
        ty: Q8_0,
        family: Family::Usual,
        rules: &[rule(Head, &[], Q8_0)],
        about: "hardly told from F16",
    },
    Mixture {
        names: &["Q6_K"],
        file_type: 18,
        ty: Q6_K,
        family: Family::Usual,
        rules: &[],
        about: "",
    },
    Mixture {
        names: &["Q5_1"],
        file_type: 9,
        ty: Q5_1,
        family: Family::Usual,
        rules: &[],
        about: "small blocks, for rows that K types do not fit",
    },
    Mixture {
        names: &["Q5_K_M", "Q5_K"],
        file_type: 17,
        ty: Q5_K,
        family: Family::Usual,
        rules: &[rule(AttentionV, &[MoreBits], Q6_K), rule(FfnDown, &[MoreBits], Q6_K)],
        about: "Q6_K for half of attn_v and ffn_down",
    },
    Mixture {
        names: &["Q5_K_S"],
        file_type: 16,
        ty: Q5_K,
        family: Family::Usual,
        rules: &[],
        about: "",
    },
    Mixture {
        names: &["Q5_0"],
        file_type: 8,
        ty: Q5_0,
        family: Family::Usual,
        rules: &[rule(FfnDown, &[FirstPart(8), Imatrix], Q5_1)],
        about: "small blocks, for rows that K types do not fit",
    },
    Mixture {
        names: &["Q4_1"],
        file_type: 3,
        ty: Q4_1,
        family: Family::Usual,
        rules: &[],
        about: "small blocks, for rows that K types do not fit",
    },
    Mixture {
        names: &["Q4_K_M", "Q4_K"],
        file_type: 15,
        ty: Q4_K,
        family: Family::Usual,
        rules: &[
            rule(AttentionV, &[MoreBits], Q6_K),
            rule(FfnDown, &[Falcon, FirstPart(16)], Q6_K),
            rule(FfnDown, &[Falcon, MoreBits], Q5_K),
            rule(FfnDown, &[MoreBits], Q6_K),
            rule(AttentionOutput, &[Experts(8)], Q5_K),
        ],
        about: "Q6_K for half of attn_v and ffn_down; the usual choice",
    },
    Mixture {
        names: &["Q4_K_S"],
        file_type: 14,
        ty: Q4_K,
        family: Family::Usual,
        rules: &[
            rule(AttentionV, &[FirstTensors(4)], Q5_K),
            rule(FfnDown, &[NotFalcon, FirstPart(8)], Q5_K),
            rule(AttentionOutput, &[Experts(8)], Q5_K),
        ],
        about: "Q5_K for attn_v and ffn_down of the first layers",
    },
    Mixture {
        names: &["Q4_0"],
        file_type: 2,
        ty: Q4_0,
        family: Family::Usual,
        rules: &[rule(FfnDown, &[FirstPart(8), Imatrix], Q4_1)],
        about: "small blocks, for rows that K types do not fit",
    },
    Mixture {
        names: &["IQ4_NL"],
        file_type: 25,
        ty: IQ4_NL,
        family: Family::Usual,
        rules: IQ4,
        about: "uneven steps; small blocks",
    },
    Mixture {
        names: &["NVFP4"],
        file_type: 39,
        ty: NVFP4,
        family: Family::Pure,
        rules: &[],
        about: "every matrix; not among llama-quantize's",
    },
    Mixture {
        names: &["IQ4_XS"],
        file_type: 30,
        ty: IQ4_XS,
        family: Family::Usual,
        rules: IQ4,
        about: "uneven steps",
    },
    Mixture {
        names: &["MXFP4_MOE"],
        file_type: 38,
        ty: MXFP4,
        family: Family::Usual,
        rules: &[
            any(&[Flat], Q8_0),
            rule(FfnUp, &[], MXFP4),
            rule(FfnGate, &[], MXFP4),
            rule(FfnDown, &[], MXFP4),
            any(&[BailingMoe3], Q8_0),
        ],
        about: "experts only, all else Q8_0",
    },
    Mixture {
        names: &["MXFP4"],
        file_type: 38,
        ty: MXFP4,
        family: Family::Pure,
        rules: &[],
        about: "every matrix; not among llama-quantize's",
    },
    Mixture {
        names: &["Q3_K_L"],
        file_type: 13,
        ty: Q3_K,
        family: Family::Usual,
        rules: &[
            rule(AttentionV, &[], Q5_K),
            rule(FfnDown, &[Falcon], Q4_K),
            rule(FfnDown, &[], Q5_K),
            rule(AttentionOutput, &[Falcon], Q4_K),
            rule(AttentionOutput, &[NotExperts(8)], Q5_K),
        ],
        about: "Q5_K for attn_v, attn_output and ffn_down",
    },
    Mixture {
        names: &["Q3_K_M", "Q3_K"],
        file_type: 12,
        ty: Q3_K,
        family: Family::Usual,
        rules: &[
            rule(AttentionV, &[FirstTensors(2)], Q5_K),
            rule(AttentionV, &[], Q4_K),
            rule(FfnDown, &[FirstPart(16)], Q5_K),
            rule(FfnDown, &[NotFalcon], Q4_K),
            rule(FfnDown, &[MoreBits], Q4_K),
            rule(AttentionOutput, &[Experts(8)], Q5_K),
            rule(AttentionOutput, &[NotFalcon], Q4_K),
        ],
        about: "Q4_K for attn_v, attn_output and ffn_down, Q5_K in the first layers",
    },
    Mixture {
        names: &["Q3_K_S"],
        file_type: 11,
        ty: Q3_K,
        family: Family::Usual,
        rules: &[rule(AttentionOutput, &[Experts(8)], Q5_K)],
        about: "",
    },
    Mixture {
        names: &["IQ3_M"],
        file_type: 27,
        ty: IQ3_S,
        family: Family::Usual,
        rules: &[
            rule(AttentionV, &[], Q4_K),
            rule(FfnDown, &[FirstPart(8)], Q4_K),
            rule(FfnDown, &[Experts(8), MoreBits], Q4_K),
            rule(AttentionOutput, &[Experts(8)], Q5_K),
            rule(AttentionOutput, &[NotFalcon], Q4_K),
        ],
        about: "Q4_K for attn_v, attn_output and the first ffn_down",
    },
    Mixture {
        names: &["IQ3_S"],
        file_type: 26,
        ty: IQ3_S,
        family: Family::Usual,
        rules: &[
            rule(AttentionV, &[SharedHeads], Q4_K),
            rule(AttentionOutput, &[Experts(8)], Q5_K),
        ],
        about: "",
    },
    Mixture {
        names: &["IQ3_XS"],
        file_type: 22,
        ty: IQ3_S,
        family: Family::Usual,
        rules: &[
            rule(AttentionV, &[SharedHeads], Q4_K),
            rule(AttentionK, &[], IQ3_XXS),
            rule(AttentionQ, &[], IQ3_XXS),
            rule(AttentionOutput, &[Experts(8)], Q5_K),
            rule(FfnGate, &[Middle], IQ3_XXS),
            rule(FfnUp, &[Middle], IQ3_XXS),
        ],
        about: "IQ3_XXS for attn_k, attn_q and most of ffn_gate and ffn_up",
    },
    Mixture {
        names: &["IQ3_XXS"],
        file_type: 23,
        ty: IQ3_XXS,
        family: Family::Usual,
        rules: &[
            rule(Head, &[], Q5_K),
            rule(Embedding, &[], IQ3_S),
            rule(AttentionV, &[SharedHeads], Q4_K),
            rule(AttentionV, &[NoImatrix], IQ3_S),
            rule(AttentionK, &[], IQ2_S),
            rule(AttentionQ, &[], IQ2_S),
            rule(FfnDown, &[NoImatrix, FirstPart(8)], Q4_K),
            rule(FfnDown, &[NoImatrix], Q3_K),
            rule(AttentionOutput, &[Experts(8)], Q5_K),
            rule(AttentionOutput, &[NotFalcon], IQ3_S),
        ],
        about: "IQ2_S for attn_k and attn_q",
    },
    Mixture {
        names: &["Q2_K"],
        file_type: 10,
        ty: Q2_K,
        family: Family::Usual,
        rules: &[
            rule(AttentionV, &[SharedHeads], Q4_K),
            rule(AttentionV, &[], Q3_K),
            rule(FfnDown, &[], Q3_K),
            rule(AttentionOutput, &[Experts(8)], Q5_K),
            rule(AttentionOutput, &[NotFalcon], Q3_K),
        ],
        about: "Q3_K for attn_v, attn_output and ffn_down",
    },
    Mixture {
        names: &["Q2_K_S"],
        file_type: 21,
        ty: Q2_K,
        family: Family::Usual,
        rules: &[rule(AttentionV, &[SharedHeads], Q4_K), rule(FfnDown, &[FirstPart(8)], Q4_K)],
        about: "",
    },
    Mixture {
        names: &["IQ2_M"],
        file_type: 29,
        ty: IQ2_S,
        family: Family::TwoBit,
        rules: FROM_IQ2_S,
        about: "IQ3_S for attn_v and attn_output",
    },
    Mixture {
        names: &["IQ2_S"],
        file_type: 28,
        ty: IQ2_XS,
        family: Family::TwoBit,
        rules: FROM_IQ2_S,
        about: "IQ3_S for attn_v and attn_output",
    },
    Mixture {
        names: &["IQ2_XS"],
        file_type: 20,
        ty: IQ2_XS,
        family: Family::TwoBit,
        rules: TO_IQ2_XS,
        about: "",
    },
    Mixture {
        names: &["Q2_0"],
        file_type: 41,
        ty: Q2_0,
        family: Family::Usual,
        rules: COARSE,
        about: "for models trained in four values",
    },
    Mixture {
        names: &["IQ2_XXS"],
        file_type: 19,
        ty: IQ2_XXS,
        family: Family::TwoBit,
        rules: TO_IQ2_XS,
        about: "",
    },
    Mixture {
        names: &["TQ2_0"],
        file_type: 37,
        ty: TQ2_0,
        family: Family::Usual,
        rules: COARSE,
        about: "for models trained in three values",
    },
    Mixture {
        names: &["IQ1_M"],
        file_type: 31,
        ty: IQ1_M,
        family: Family::TwoBit,
        rules: IQ1,
        about: "",
    },
    Mixture {
        names: &["TQ1_0"],
        file_type: 36,
        ty: TQ1_0,
        family: Family::Usual,
        rules: COARSE,
        about: "for models trained in three values",
    },
    Mixture {
        names: &["IQ1_S"],
        file_type: 24,
        ty: IQ1_S,
        family: Family::TwoBit,
        rules: IQ1,
        about: "",
    },
    Mixture {
        names: &["Q1_0"],
        file_type: 40,
        ty: Q1_0,
        family: Family::Usual,
        rules: &[],
        about: "for models trained in two values",
    },
];
