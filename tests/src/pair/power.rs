//! Disks whose power is cut: a file system on an image of its own, of which only what was really given to the disk is kept.
//!
//! A copy of the image file holds what the file system had written to its device; what was only in the page cache above it
//! is not there, as after a power cut. Always: the copy is taken while no process that uses the disk lives, so that it is
//! the state of one moment. The kernel's own writing back is put off for longer than a test lasts, so that nothing gets to
//! the disk that nobody synced.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use nix::mount::umount;

use super::wait_until;

/// Neither a commit every five seconds nor a flush at a rename: what is not synced stays in memory.
const MOUNT_OPTIONS: &str = "loop,commit=300,noauto_da_alloc";

/// A file system on a loop device over an image file, mounted until it is dropped.
#[derive(Debug)]
pub struct PowerDisk {
    at: PathBuf,
    image: PathBuf,
}

fn run(program: &str, arguments: &[&Path]) -> Result<(), String> {
    let output = Command::new(program).args(arguments).output().map_err(|error| format!("{program}: {error}"))?;
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    output.status.success().then_some(()).ok_or_else(|| format!("{program}: {said}"))
}

fn mount_image(image: &Path, at: &Path) -> Result<(), String> {
    run("mount", &[Path::new("-o"), Path::new(MOUNT_OPTIONS), image, at])
}

impl PowerDisk {
    /// Moves the directory `at` onto a file system of its own of `bytes`, which lies in `images`.
    ///
    /// # Errors
    /// Why that is not possible: no root, no loop devices, no mkfs.ext4.
    ///
    /// # Panics
    /// When the image file cannot be made.
    pub fn over(at: &Path, images: &Path, bytes: u64) -> Result<Self, String> {
        let name = at.file_name().expect("a directory with a name").to_string_lossy();
        let image = images.join(format!("{name}.img"));
        let file = fs::File::create(&image).expect("an image file");
        file.set_len(bytes).expect("an image file");
        run("mkfs.ext4", &[Path::new("-q"), Path::new("-F"), &image])?;
        let aside = at.with_file_name(format!("{name}.content"));
        fs::rename(at, &aside).expect("what the directory holds");
        fs::create_dir(at).expect("the mount point");
        let mounted = mount_image(&image, at);
        if mounted.is_err() {
            fs::remove_dir(at).and_then(|()| fs::rename(&aside, at)).expect("what the directory held");
            return mounted.map(|()| unreachable!("it is not mounted"));
        }
        let disk = Self { at: at.to_owned(), image };
        run("cp", &[Path::new("-a"), &aside.join("."), at])?;
        run("sync", &[Path::new("-f"), at])?;
        Ok(disk)
    }

    /// Cuts the power: whatever the device was not given is gone. To be called when every process that uses it is dead.
    ///
    /// # Panics
    /// When it is still in use, or what is left cannot be mounted.
    pub fn cut(&mut self) {
        let left = self.image.with_extension("left");
        fs::copy(&self.image, &left).expect("a copy of the image");
        // Unmounting writes everything back, to an image that nobody reads any more.
        wait_until("the disk is not in use any more", || umount(&self.at).is_ok());
        fs::rename(&left, &self.image).expect("the image");
        mount_image(&self.image, &self.at).expect("the file system recovers");
    }
}

impl Drop for PowerDisk {
    fn drop(&mut self) {
        if let Err(error) = nix::mount::umount2(&self.at, nix::mount::MntFlags::MNT_DETACH) {
            eprintln!("cannot unmount {}: {error}", self.at.display());
        }
    }
}
