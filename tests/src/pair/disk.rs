//! Small file systems that a test makes for itself, fills and takes away.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// A file system in memory of bounded size, mounted until it is dropped.
#[derive(Debug)]
pub struct SmallDisk {
    at: PathBuf,
}

impl SmallDisk {
    /// Mounts one of `bytes` at `at`, which comes into being.
    ///
    /// # Errors
    /// Why that is not possible: no root.
    ///
    /// # Panics
    /// When `at` cannot be made.
    pub fn mount(at: &Path, bytes: u64) -> Result<Self, String> {
        fs::create_dir_all(at).expect("the mount point");
        let size = format!("size={bytes},mode=0700");
        mount(Some("none"), at, Some("tmpfs"), MsFlags::empty(), Some(size.as_str()))
            .map_err(|error| format!("cannot mount a file system of its own: {error}"))?;
        Ok(Self { at: at.to_owned() })
    }

    /// Shows it at `at` too, until that is dropped.
    ///
    /// # Errors
    /// Why that is not possible.
    ///
    /// # Panics
    /// When `at` cannot be made.
    pub fn also_at(&self, at: &Path) -> Result<Self, String> {
        fs::create_dir_all(at).expect("the mount point");
        mount(Some(&self.at), at, None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .map_err(|error| format!("cannot mount at {}: {error}", at.display()))?;
        Ok(Self { at: at.to_owned() })
    }

    fn ballast(&self) -> PathBuf {
        self.at.join("ballast")
    }

    /// Takes up all the room that is left.
    ///
    /// # Panics
    /// When writing fails for anything but lack of room.
    pub fn fill(&self) {
        let mut file = File::options().append(true).create(true).open(self.ballast()).expect("a file for the ballast");
        for piece in [1 << 20, 4096, 1] {
            let piece = vec![b'.'; piece];
            loop {
                match file.write(&piece) {
                    Ok(_) => {}
                    Err(error) if error.kind() == io::ErrorKind::StorageFull => break,
                    Err(error) => panic!("filling the disk: {error}"),
                }
            }
        }
    }

    /// Gives back what [`Self::fill`] took.
    ///
    /// # Panics
    /// When it was not filled.
    pub fn make_room(&self) {
        fs::remove_file(self.ballast()).expect("the ballast is there");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Members may have files open there.
        if let Err(error) = umount2(&self.at, MntFlags::MNT_DETACH) {
            eprintln!("cannot unmount {}: {error}", self.at.display());
        }
    }
}
