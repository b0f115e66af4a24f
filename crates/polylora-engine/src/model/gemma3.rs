//! Gemma 3: five layers with a window to one without, each kind with a rotation of its own.

use super::description::Description;
use super::gemma2::set_gemma;
use super::keys::Keys;
use crate::Error;
use crate::rope::Pairs;

/// The base of the windowed layers' rotation where the metadata has none.
const LOCAL_BASE: f32 = 10_000.0;
/// The number of layers of the 27B, whose queries are scaled by another width.
const LAYERS_27B: usize = 62;

pub(super) fn describe(keys: &Keys<'_>) -> Result<Description, Error> {
    let mut description = Description::read(keys, Pairs::Halves)?;
    if let Some(window) = keys.size("attention.sliding_window")?.filter(|&window| window > 0) {
        let base = keys.float_or("rope.freq_base_swa", LOCAL_BASE)?;
        let rope = description.rope.unscaled().with_base(Some(base));
        description.set_window(keys, window, 6, rope)?;
    }
    description.logit_cap = keys.float("final_logit_softcapping")?.filter(|&cap| cap != 0.0);
    description.has_head_norms = true;
    set_gemma(&mut description, LAYERS_27B);
    Ok(description)
}
