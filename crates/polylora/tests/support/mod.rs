//! A folder in which the program runs.

use std::path::PathBuf;
use std::process::{Command, Output};

/// A temporary folder; what is in it is for each test file to say.
pub(crate) struct Folder(pub(crate) tempfile::TempDir);

impl Folder {
    pub(crate) fn empty() -> Folder {
        Folder(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn polylora(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_polylora"));
        command.current_dir(self.0.path()).args(arguments).output().unwrap()
    }

    /// Runs what must work; returns standard output.
    pub(crate) fn ok(&self, arguments: &[&str]) -> String {
        let output = self.polylora(arguments);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {error}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs what must fail with `code`; returns the message. Nothing new may lie in the folder.
    pub(crate) fn fails(&self, code: i32, arguments: &[&str]) -> String {
        let before = self.names();
        let output = self.polylora(arguments);
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {message}");
        assert_eq!(self.names(), before, "{arguments:?} left something behind");
        message
    }

    pub(crate) fn names(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.0.path()).unwrap();
        let mut names: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
        names.sort();
        names
    }
}
