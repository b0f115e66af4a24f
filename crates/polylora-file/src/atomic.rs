//! Files that appear under their names whole, or not at all.

use crate::{Error, Fault};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use tempfile::{Builder, NamedTempFile};

/// A file that is written beside its later name, and renamed when it is whole.
///
/// Dropped before that, it leaves nothing.
#[derive(Debug)]
pub struct AtomicFile {
    file: NamedTempFile,
    path: PathBuf,
    size: u64,
    overwrite: bool,
}

impl AtomicFile {
    /// Begins a file of `size` bytes, all zero, whose room on the disk is reserved where the
    /// system can do that.
    ///
    /// # Errors
    /// Where the file exists and may not be replaced, has no room, or cannot be created.
    pub fn create(path: &Path, size: u64, overwrite: bool) -> Result<AtomicFile, Error> {
        check_target(path, overwrite)?;
        check_room(path, size)?;
        let mut builder = Builder::new();
        // A name that tells what it is, should the process be killed.
        builder.prefix(".polylora-").suffix(".part");
        #[cfg(unix)]
        {
            // As any new file: what the user's umask leaves of it.
            use std::os::unix::fs::PermissionsExt;
            builder.permissions(fs::Permissions::from_mode(0o666));
        }
        let file = builder.tempfile_in(folder(path));
        let file = file.map_err(|error| Fault::io("create it")(error).at(path))?;
        let file = AtomicFile { file, path: path.to_owned(), size, overwrite };
        reserve(file.file.as_file(), size).map_err(|error| file.write_error(error))?;
        Ok(file)
    }

    /// Writes bytes at a place; from many threads at once, if they like.
    ///
    /// # Errors
    /// Where the system does not write them.
    pub fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        write_all_at(self.file.as_file(), bytes, offset).map_err(|error| self.write_error(error))
    }

    /// Gives the file its name, once it is safe on the disk.
    ///
    /// # Errors
    /// Where that fails, or the name was taken meanwhile and may not be replaced.
    pub fn finish(self) -> Result<(), Error> {
        AtomicFile::finish_all(vec![self]).map(drop)
    }

    /// Gives several files their names, the first one last: who looks for that finds the others.
    /// Where one cannot have its name, those that were new are taken back.
    pub(crate) fn finish_all(files: Vec<AtomicFile>) -> Result<Vec<PathBuf>, Error> {
        for file in &files {
            file.file.as_file().sync_all().map_err(|error| file.write_error(error))?;
        }
        let paths: Vec<PathBuf> = files.iter().map(|file| file.path.clone()).collect();
        let mut renamed = Vec::new();
        for AtomicFile { file, path, overwrite, .. } in files.into_iter().rev() {
            let result = match overwrite {
                true => file.persist(&path),
                false => file.persist_noclobber(&path),
            };
            if let Err(error) = result {
                if !overwrite {
                    // The reason is told; that they cannot be removed either would hide it.
                    renamed.iter().for_each(|path: &PathBuf| drop(fs::remove_file(path)));
                }
                let fault = match error.error.kind() {
                    io::ErrorKind::AlreadyExists => Fault::Exists,
                    _ => Fault::io("give it its name")(error.error),
                };
                return Err(fault.at(&path));
            }
            renamed.push(path);
        }
        Ok(paths)
    }

    fn write_error(&self, error: io::Error) -> Error {
        write_fault(error, self.size, folder(&self.path)).at(&self.path)
    }
}

/// What the system's error says of a file that is to have `needed` bytes.
fn write_fault(error: io::Error, needed: u64, folder: &Path) -> Fault {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            Fault::NoRoom { needed, free: free_room(folder) }
        }
        io::ErrorKind::FileTooLarge => Fault::FileTooLarge(needed),
        _ => Fault::io("write it")(error),
    }
}

/// Writes a small file, whole or not at all.
///
/// # Errors
/// Where it exists and may not be replaced, or cannot be written.
pub fn write_file(path: &Path, bytes: &[u8], overwrite: bool) -> Result<(), Error> {
    let file = AtomicFile::create(path, bytes.len() as u64, overwrite)?;
    file.write_at(0, bytes)?;
    file.finish()
}

/// Whether two paths lead to one file: through links of either kind, or by another spelling.
/// Paths that lead nowhere are not the same.
pub fn same_file(a: &Path, b: &Path) -> bool {
    identity(a).is_ok_and(|a| identity(b).is_ok_and(|b| a == b))
}

/// Refuses an output that is one of the inputs, whether or not it may be replaced.
///
/// # Errors
/// [`Fault::IsInput`].
pub fn check_output<'a>(
    out: &Path,
    inputs: impl IntoIterator<Item = &'a Path>,
) -> Result<(), Error> {
    match inputs.into_iter().find(|input| same_file(input, out)) {
        Some(input) => Err(Fault::IsInput(input.to_owned()).at(out)),
        None => Ok(()),
    }
}

#[cfg(unix)]
fn identity(path: &Path) -> io::Result<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    fs::metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}

#[cfg(not(unix))]
fn identity(path: &Path) -> io::Result<PathBuf> {
    fs::canonicalize(path)
}

/// Refuses a name that is taken, or belongs to what must not be replaced.
fn check_target(path: &Path, overwrite: bool) -> Result<(), Error> {
    match fs::metadata(path) {
        Ok(metadata) if !metadata.is_file() => Err(Fault::NotAFile.at(path)),
        Ok(_) if !overwrite => Err(Fault::Exists.at(path)),
        // What else is wrong shows when it is created.
        _ => Ok(()),
    }
}

/// Refuses an output that is larger than what is free, before the work is begun.
pub(crate) fn check_room(path: &Path, needed: u64) -> Result<(), Error> {
    match free_room(folder(path)) {
        Some(free) if free < needed => Err(Fault::NoRoom { needed, free: Some(free) }.at(path)),
        _ => Ok(()),
    }
}

/// The folder that a file is in.
fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    }
}

/// Bytes that are free in a folder, where the system tells.
#[cfg(unix)]
fn free_room(folder: &Path) -> Option<u64> {
    let disk = rustix::fs::statvfs(folder).ok()?;
    // A system of files that does not count its blocks says that it has none.
    (disk.f_blocks > 0).then(|| disk.f_bavail.saturating_mul(disk.f_frsize))
}

#[cfg(not(unix))]
fn free_room(_: &Path) -> Option<u64> {
    None
}

/// Makes a new file `size` bytes long.
fn reserve(file: &File, size: u64) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    if size > 0 {
        use rustix::fs::{FallocateFlags, fallocate};
        use rustix::io::Errno;
        return match fallocate(file, FallocateFlags::empty(), 0, size) {
            // Not every system of files can.
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => file.set_len(size),
            result => Ok(result?),
        };
    }
    file.set_len(size)
}

#[cfg(unix)]
fn write_all_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, bytes, offset)
}

#[cfg(windows)]
fn write_all_at(file: &File, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        match std::os::windows::fs::FileExt::seek_write(file, bytes, offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => {
                bytes = &bytes[count..];
                offset += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_says_how_much_is_needed() {
        // The device that is always full gives the system's own error.
        let full = File::options().write(true).open("/dev/full").unwrap();
        let error = write_all_at(&full, b"some", 0).unwrap_err();
        let fault = write_fault(error, 1234, Path::new("."));
        assert!(matches!(fault, Fault::NoRoom { needed: 1234, free: Some(_) }), "{fault:?}");
        assert!(fault.to_string().starts_with("not enough room: 1234 bytes are needed, "));
    }

    #[test]
    fn room_is_asked_for_before_any_is_taken() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out");
        check_room(&path, 1).unwrap();
        let fault = check_room(&path, u64::MAX).unwrap_err().fault;
        assert!(matches!(fault, Fault::NoRoom { needed: u64::MAX, free: Some(_) }), "{fault:?}");
    }
}
