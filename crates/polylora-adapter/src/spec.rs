//! How an adapter is named on a command line.

use std::path::{Path, PathBuf};
use std::str::FromStr;

/// An adapter to load: `[NAME=]PATH[@SCALE]`.
///
/// A path may hold `=` and `@` itself: of the ways to read the text, the first that names
/// something that exists wins, and the whole text is tried first.
///
/// ```
/// # use polylora_adapter::AdapterSpec;
/// let spec: AdapterSpec = "formal=adapters/style-7.gguf@0.5".parse()?;
/// assert_eq!((&*spec.name, spec.scale), ("formal", 0.5));
///
/// let spec: AdapterSpec = "adapters/style-7.gguf".parse()?;
/// assert_eq!((&*spec.name, spec.scale), ("style-7", 1.0));
/// # Ok::<(), polylora_adapter::SpecError>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterSpec {
    /// What to call it; the file's stem or the folder's name where none was given.
    pub name: String,
    /// A PEFT folder or a GGUF file.
    pub path: PathBuf,
    /// What to multiply its own scale with; finite, may be negative or zero.
    pub scale: f32,
}

/// The text names no adapter.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// Nothing where the path should be.
    #[error("{0:?} has no path: write [NAME=]PATH[@SCALE]")]
    NoPath(String),
    /// A name was begun and not given.
    #[error("{0:?} has an empty name: write NAME=PATH, or PATH alone")]
    NoName(String),
    /// Not a number that weights can be multiplied with.
    #[error("{spec:?} asks for the scale {scale}: a scale is a finite number")]
    Scale {
        /// The text.
        spec: String,
        /// The part after the `@`.
        scale: String,
    },
}

impl AdapterSpec {
    /// The adapter at `path`, at scale 1, by its file's name.
    pub fn new(path: impl Into<PathBuf>) -> AdapterSpec {
        let path = path.into();
        AdapterSpec { name: default_name(&path), path, scale: 1.0 }
    }
}

impl FromStr for AdapterSpec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<AdapterSpec, SpecError> {
        let named = text.split_once('=');
        // Before an `=` of its own a path has a separator, sooner or later; a name has none.
        let named = named.filter(|(name, _)| !name.contains(['/', '\\']));
        let after_name = named.map_or(text, |(_, rest)| rest);
        let readings = [
            (None, text, None),
            scaled(None, text),
            (named.map(|(name, _)| name), after_name, None),
            scaled(named.map(|(name, _)| name), after_name),
        ];
        let exists = |&&(_, path, _): &&Reading<'_>| !path.is_empty() && Path::new(path).exists();
        // Where nothing exists the fullest reading makes the clearest message.
        let &(name, path, scale) = readings.iter().find(exists).unwrap_or(&readings[3]);

        if path.is_empty() {
            return Err(SpecError::NoPath(text.to_owned()));
        }
        if name == Some("") {
            return Err(SpecError::NoName(text.to_owned()));
        }
        let scale = match scale {
            None => 1.0,
            Some((_, scale)) if scale.is_finite() => scale,
            Some((scale, _)) => {
                let (spec, scale) = (text.to_owned(), scale.to_owned());
                return Err(SpecError::Scale { spec, scale });
            }
        };
        let path = PathBuf::from(path);
        Ok(AdapterSpec {
            name: name.map_or_else(|| default_name(&path), str::to_owned),
            path,
            scale,
        })
    }
}

/// A name, a path, and a scale as text and as number.
type Reading<'a> = (Option<&'a str>, &'a str, Option<(&'a str, f32)>);

/// Takes a number after the last `@` off the path.
fn scaled<'a>(name: Option<&'a str>, path: &'a str) -> Reading<'a> {
    match path.rsplit_once('@').map(|(path, scale)| (path, scale, scale.parse())) {
        Some((path, text, Ok(scale))) => (name, path, Some((text, scale))),
        _ => (name, path, None),
    }
}

/// The folder's name, or the file's without its extension.
fn default_name(path: &Path) -> String {
    // `.` and `a/..` have no name of their own.
    let resolved = path.canonicalize();
    let path = resolved.as_deref().unwrap_or(path);
    let name = if path.is_dir() { path.file_name() } else { path.file_stem() };
    name.map_or_else(|| "adapter".to_owned(), |name| name.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> (String, String, f32) {
        let spec: AdapterSpec = text.parse().unwrap();
        (spec.name, spec.path.to_str().unwrap().to_owned(), spec.scale)
    }

    fn expect(text: &str, name: &str, path: &str, scale: f32) {
        assert_eq!(parse(text), (name.to_owned(), path.to_owned(), scale), "{text}");
    }

    #[test]
    fn parts_are_optional() {
        expect("none/shout.gguf", "shout", "none/shout.gguf", 1.0);
        expect("none/shout.gguf@-0.25", "shout", "none/shout.gguf", -0.25);
        expect("loud=none/shout.gguf", "loud", "none/shout.gguf", 1.0);
        expect("loud=none/shout.gguf@2e-1", "loud", "none/shout.gguf", 0.2);
        expect("loud=none/shout@home", "loud", "none/shout@home", 1.0);
        expect("none/a=b.gguf", "a=b", "none/a=b.gguf", 1.0);
    }

    #[test]
    fn what_exists_wins() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().to_str().unwrap();
        for name in ["a=b", "c@0.5", "plain"] {
            std::fs::create_dir(folder.path().join(name)).unwrap();
        }
        expect(&format!("{root}/a=b"), "a=b", &format!("{root}/a=b"), 1.0);
        expect(&format!("{root}/a=b@2"), "a=b", &format!("{root}/a=b"), 2.0);
        expect(&format!("{root}/c@0.5"), "c@0.5", &format!("{root}/c@0.5"), 1.0);
        expect(&format!("x={root}/c@0.5@3"), "x", &format!("{root}/c@0.5"), 3.0);
        expect(&format!("x={root}/plain@3"), "x", &format!("{root}/plain"), 3.0);
    }

    #[test]
    fn a_folder_keeps_its_dots() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("style.v2");
        std::fs::create_dir(&path).unwrap();
        assert_eq!(AdapterSpec::new(path).name, "style.v2");
        assert_eq!(AdapterSpec::new("none/style.v2.gguf").name, "style.v2");
    }

    #[test]
    fn nonsense_is_refused() {
        let refused = |text: &str| text.parse::<AdapterSpec>().unwrap_err();
        assert_eq!(refused(""), SpecError::NoPath(String::new()));
        assert_eq!(refused("@1"), SpecError::NoPath("@1".to_owned()));
        assert_eq!(refused("x="), SpecError::NoPath("x=".to_owned()));
        assert_eq!(refused("=none/x"), SpecError::NoName("=none/x".to_owned()));
        for scale in ["nan", "inf", "-inf", "1e99"] {
            let error = refused(&format!("none/x@{scale}"));
            assert!(matches!(error, SpecError::Scale { .. }), "{error}");
        }
    }
}
