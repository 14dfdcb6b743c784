//! Guests' kernels and discs from the distribution's own packages: downloaded by apt (which checks their signatures),
//! unpacked under `target/media` and never installed.

use std::collections::HashMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

/// Which of the distribution's kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flavour {
    /// The smaller kernel made for clouds: virtio-blk, net, rng, console and input, but no virtio-gpu and no AHCI.
    /// Ubuntu has none, and its generic kernel stands in.
    Cloud,
    /// The full kernel with every driver.
    Generic,
}

impl Flavour {
    /// Names of the meta packages to try, first Debian's, then Ubuntu's.
    fn packages(self) -> &'static [&'static str] {
        match self {
            Flavour::Cloud => &["linux-image-cloud-amd64", "linux-image-generic"],
            Flavour::Generic => &["linux-image-amd64", "linux-image-generic"],
        }
    }

    fn name(self) -> &'static str {
        match self {
            Flavour::Cloud => "cloud",
            Flavour::Generic => "generic",
        }
    }
}

/// GRUB's rescue disc, from the package grub-rescue-pc.
pub fn grub_rescue_iso() -> Result<PathBuf> {
    Ok(unpacked("grub-rescue-pc")?.join("usr/lib/grub-rescue/grub-rescue-cdrom.iso"))
}

/// memtest86+'s disc for BIOS machines, from the package memtest86+.
pub fn memtest_iso() -> Result<PathBuf> {
    Ok(unpacked("memtest86+")?.join("usr/lib/memtest86+/memtest86+x64.iso"))
}

/// The version of a package as it can be downloaded now.
///
/// # Errors
/// apt does not know it.
pub fn version(package: &str) -> Result<String> {
    let output = Command::new("apt-cache").args(["show", "--no-all-versions", package]).output();
    let output = output.context("could not run apt-cache")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let version = text.lines().find_map(|line| line.strip_prefix("Version: "));
    Ok(version.with_context(|| format!("apt does not know the package {package}"))?.to_owned())
}

/// memtest86+ as a UEFI application, which nobody has signed.
pub fn memtest_efi() -> Result<PathBuf> {
    Ok(unpacked("memtest86+")?.join("boot/memtest86+x64.efi"))
}

/// The first stage of the distribution's signed boot loader, which Microsoft has signed: from the package shim-signed.
pub fn shim() -> Result<PathBuf> {
    Ok(unpacked("shim-signed")?.join("usr/lib/shim/shimx64.efi.signed"))
}

/// The second stage, signed by the distribution, in its form for CDs: it reads /boot/grub/grub.cfg of the disc that has
/// a file /.disk/info.
pub fn grub_cd() -> Result<PathBuf> {
    Ok(unpacked("grub-efi-amd64-signed")?.join("usr/lib/grub/x86_64-efi-signed/gcdx64.efi.signed"))
}

/// Makes a disk of one FAT file system without partitions, with these files: each is a name and what it holds.
pub fn fat_disk(path: &Path, files: &[(&str, &str)]) -> Result<()> {
    run(Command::new("mformat").args(["-C", "-T", "8192", "-h", "1", "-s", "1", "-i"]).arg(path).arg("::"))?;
    for (name, content) in files {
        let file = path.with_extension("content");
        fs::write(&file, content).context("could not write a disk's file")?;
        run(Command::new("mcopy").arg("-i").arg(path).arg(&file).arg(format!("::{name}")))?;
    }
    Ok(())
}

/// Makes a CD that UEFI starts (El Torito, a FAT image): `programs` are files of its folder EFI/BOOT, of which
/// `BOOTX64.EFI` is started; `files` are the disc's own. Each is a name and the file to copy. The disc, in `folder`.
pub fn uefi_disc(folder: &Path, programs: &[(&str, &Path)], files: &[(&str, &Path)]) -> Result<PathBuf> {
    let tree = tempfile::tempdir_in(folder).context("could not make a folder for a disc")?;
    let image = tree.path().join("efi.img");
    let mut size = 0;
    for (_, program) in programs {
        size += fs::metadata(program).with_context(|| format!("{} is missing", program.display()))?.len();
    }
    // In sectors, with some room for the file system.
    let sectors = (size / 512 + 2048).to_string();
    run(Command::new("mformat").args(["-C", "-T", &sectors, "-h", "1", "-s", "1", "-i"]).arg(&image).arg("::"))?;
    run(Command::new("mmd").arg("-i").arg(&image).args(["::EFI", "::EFI/BOOT"]))?;
    for (name, program) in programs {
        run(Command::new("mcopy").arg("-i").arg(&image).arg(program).arg(format!("::EFI/BOOT/{name}")))?;
    }
    for (name, file) in files {
        let to = tree.path().join(name);
        if let Some(parent) = to.parent() {
            fs::create_dir_all(parent).context("could not make a folder of a disc")?;
        }
        fs::copy(file, &to).with_context(|| format!("could not copy {}", file.display()))?;
    }
    let disc = folder.join("uefi.iso");
    run(Command::new("xorriso")
        .args([
            "-report_about",
            "WARNING",
            "-as",
            "mkisofs",
            "-R",
            "-V",
            "UEFI",
            "-e",
            "efi.img",
            "-no-emul-boot",
            "-o",
        ])
        .arg(&disc)
        .arg(tree.path()))?;
    Ok(disc)
}

/// An unpacked kernel.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// The compressed boot image (bzImage).
    pub image: PathBuf,
    modules: PathBuf,
    dependencies: HashMap<String, Vec<PathBuf>>,
    builtin: Vec<String>,
}

impl Kernel {
    /// The kernel from the cache, or else downloaded into it.
    pub fn fetch(flavour: Flavour) -> Result<Self> {
        let folder = cached(&format!("kernel-{}", flavour.name()), |unpacked| {
            download(&kernel_packages(flavour)?, unpacked)?;
            // Newer distributions have /lib in /usr.
            if !unpacked.join("lib").exists() {
                std::os::unix::fs::symlink("usr/lib", unpacked.join("lib")).context("could not link /lib")?;
            }
            let release = only_entry(&unpacked.join("lib/modules"), "")?;
            let release = release.file_name().unwrap_or_default();
            let depmod = ["/sbin/depmod", "/usr/sbin/depmod"].into_iter().find(|path| Path::new(path).exists());
            let depmod = depmod.context("depmod is missing: install the package kmod, or run './dev setup'")?;
            run(Command::new(depmod).arg("-b").arg(unpacked).arg(release))
        })?;
        Self::open(&folder)
    }

    fn open(folder: &Path) -> Result<Self> {
        let boot = folder.join("boot");
        let image = only_entry(&boot, "vmlinuz-")?;
        let modules = only_entry(&folder.join("lib/modules"), "")?;
        let mut dependencies = HashMap::new();
        let table =
            fs::read_to_string(modules.join("modules.dep")).context("the kernel's list of modules is missing")?;
        for line in table.lines() {
            let Some((module, needs)) = line.split_once(':') else { continue };
            // depmod lists what a module needs from the nearest to the farthest: load it from the end.
            let mut order: Vec<PathBuf> = needs.split_ascii_whitespace().rev().map(|need| modules.join(need)).collect();
            order.push(modules.join(module));
            dependencies.insert(module_name(module), order);
        }
        let builtin = fs::read_to_string(modules.join("modules.builtin")).unwrap_or_default();
        let builtin = builtin.lines().map(module_name).collect();
        Ok(Self { image, modules, dependencies, builtin })
    }

    /// The kernel's release, as `uname -r` prints it.
    pub fn release(&self) -> &str {
        self.modules.file_name().and_then(|name| name.to_str()).unwrap_or_default()
    }

    /// Whether the kernel has the driver, as a module or built in.
    pub fn has(&self, module: &str) -> bool {
        let name = module_name(module);
        self.dependencies.contains_key(&name) || self.builtin.contains(&name)
    }

    /// The modules' names and contents, uncompressed, with all that they need, in the order they must be loaded. Drivers
    /// that are built in are left out.
    pub fn modules(&self, names: &[&str]) -> Result<Vec<(String, Vec<u8>)>> {
        let mut order: Vec<&PathBuf> = Vec::new();
        for name in names {
            let name = module_name(name);
            match self.dependencies.get(&name) {
                Some(chain) => chain.iter().for_each(|path| {
                    if !order.contains(&path) {
                        order.push(path);
                    }
                }),
                None if self.builtin.contains(&name) => {}
                None => bail!("the kernel {} has no driver '{name}'", self.release()),
            }
        }
        order.into_iter().map(|path| Ok((module_name(&path.to_string_lossy()), read_module(path)?))).collect()
    }
}

/// The name the kernel gives a module's file: without folder and endings, with underscores.
fn module_name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split('.').next().unwrap_or(file).replace('-', "_")
}

/// A module's bytes; Ubuntu compresses them, and busybox cannot load such a one.
fn read_module(path: &Path) -> Result<Vec<u8>> {
    let tool = match path.extension().and_then(|ending| ending.to_str()) {
        Some("zst") => "zstd",
        Some("xz") => "xz",
        _ => return fs::read(path).with_context(|| format!("could not read {}", path.display())),
    };
    let output = Command::new(tool).arg("-dc").arg(path).output().with_context(|| format!("could not run {tool}"))?;
    ensure!(output.status.success(), "{tool} could not unpack {}", path.display());
    Ok(output.stdout)
}

/// A package's files, in the cache.
///
/// # Errors
/// It can't be downloaded or unpacked.
pub fn unpacked(package: &str) -> Result<PathBuf> {
    cached(package, |folder| download(&[package.to_owned()], folder))
}

/// A folder of the cache; if it is missing, `fill` makes it, and it appears only when it is complete. Tests that run at
/// the same time wait for one another.
pub fn cached(name: &str, fill: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let cache = crate::target().join("media");
    fs::create_dir_all(&cache).with_context(|| format!("could not make {}", cache.display()))?;
    let lock = File::create(cache.join("lock")).context("could not make the media cache's lock")?;
    lock.lock().context("could not lock the media cache")?;
    let folder = cache.join(name);
    if !folder.exists() {
        let scratch =
            tempfile::Builder::new().prefix("unpack-").tempdir_in(&cache).context("could not make a folder")?;
        let unpacked = scratch.path().join("root");
        fs::create_dir(&unpacked).context("could not make a folder")?;
        fill(&unpacked)?;
        fs::rename(&unpacked, &folder).with_context(|| format!("could not move media to {}", folder.display()))?;
    }
    Ok(folder)
}

/// Downloads the packages and unpacks them all into `folder`.
fn download(packages: &[String], folder: &Path) -> Result<()> {
    let scratch = tempfile::tempdir().context("could not make a folder for a download")?;
    // apt downloads as an unprivileged user of its own.
    run(Command::new("chmod").arg("0777").arg(scratch.path()))?;
    for package in packages {
        eprintln!("downloading the package {package} for the tests (it is not installed)");
        run(Command::new("apt-get").args(["-q", "-q", "download", package]).current_dir(scratch.path()))?;
    }
    for entry in fs::read_dir(scratch.path()).context("could not list the downloads")? {
        let path = entry.context("could not list the downloads")?.path();
        run(Command::new("dpkg").arg("-x").arg(&path).arg(folder))?;
    }
    Ok(())
}

/// The packages that hold the flavour's newest kernel and its modules, from the meta package's dependencies.
fn kernel_packages(flavour: Flavour) -> Result<Vec<String>> {
    for meta in flavour.packages() {
        let output = Command::new("apt-cache").args(["depends", "--important", meta]).output();
        let output =
            output.context("could not run apt-cache: the tests' guests are made of Debian or Ubuntu packages")?;
        let text = String::from_utf8_lossy(&output.stdout);
        let depends = text.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
        let image = depends.into_iter().find(|name| name.starts_with("linux-image-"));
        let Some(image) = image else { continue };
        let mut packages = vec![image.to_owned()];
        // Ubuntu keeps modules in packages of their own, Debian in the image's.
        for prefix in ["linux-modules-", "linux-modules-extra-"] {
            let modules = image.replacen("linux-image-", prefix, 1);
            let known =
                Command::new("apt-cache").args(["show", &modules]).output().context("could not run apt-cache")?;
            if known.status.success() && !known.stdout.is_empty() {
                packages.push(modules);
            }
        }
        return Ok(packages);
    }
    bail!("apt knows none of {:?}: run 'apt-get update', or './dev setup'", flavour.packages())
}

fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("could not run {command:?}"))?;
    ensure!(status.success(), "{command:?} failed: {status}");
    Ok(())
}

/// The one entry of the folder whose name starts with `prefix`.
fn only_entry(folder: &Path, prefix: &str) -> Result<PathBuf> {
    let entries = fs::read_dir(folder).with_context(|| format!("could not list {}", folder.display()))?;
    let mut found: Vec<PathBuf> = entries
        .filter_map(|entry| entry.ok())
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
        .map(|entry| entry.path())
        .collect();
    found.sort();
    found.pop().with_context(|| format!("{} holds no '{prefix}…'", folder.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_come_after_those_they_need() {
        let kernel = Kernel::fetch(Flavour::Generic).unwrap();
        let modules = kernel.modules(&["9p"]).unwrap();
        let place = |name: &str| modules.iter().position(|(other, _)| other == name).unwrap();
        assert!(place("9pnet") < place("9p"));
    }

    #[test]
    fn discs_are_iso_9660() {
        for disc in [grub_rescue_iso().unwrap(), memtest_iso().unwrap()] {
            let bytes = fs::read(&disc).unwrap();
            // ECMA-119 §8.1: the first volume descriptor is in sector 16 and says CD001.
            assert_eq!(&bytes[16 * 2048 + 1..16 * 2048 + 6], b"CD001", "{}", disc.display());
        }
    }
}
