//! Merges that keep the adapter: weights rounded by what their layers read.
//!
//! A type of few bits cannot hold a small change of each weight. What counts is what a layer gives, so
//! the model with the adapter reads some text, and the second moments of what each linear layer reads
//! say which errors show and which do not; the rounding of one weight then makes good what the others
//! lost ([`polylora_quant::compensate`]). Layer follows layer: each is measured on what the merged
//! layers before it give, so that it makes good their errors too.

mod budget;
mod extract;
mod low_rank;
mod merge;
mod moments;
mod products;
mod residual;
mod seen;
mod sums;
mod texts;

pub use budget::{BudgetError, choose};
pub use extract::{ExtractError, ExtractReport, ExtractedTensor, LeftOut, extract};
pub use low_rank::Wanted;
pub use merge::{Error, Merged, Observer, Options, merge};
pub use texts::{Answer, TextError, answers, cut, from_chats, written};
