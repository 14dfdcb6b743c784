//! What is done to disk images: to files, and to the disks of machines that are off.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use vmm_core::backend::disk::tools::{self, Info, Job, Target, ToolError};
use vmm_core::backend::disk::{Findings, Format};
use vmm_core::config::DiskBus;

use super::verbs::{First, JobError, Progress};
use crate::library::{Library, LibraryError, Machine, is_own, lock::VmLock, size};

/// An image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Disk {
    /// A disk of a machine of the library.
    Of {
        /// The machine.
        machine: String,
        /// Which disk, from 0.
        disk: usize,
    },
    /// A file.
    File(PathBuf),
}

/// How large a disk is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    /// This large, bytes.
    To(u64),
    /// Larger by this much, bytes.
    By(u64),
}

impl std::str::FromStr for Size {
    type Err = String;
    fn from_str(text: &str) -> Result<Size, String> {
        match text.trim().strip_prefix('+') {
            Some(more) => size::parse(more).map(Size::By),
            None => size::parse(text).map(Size::To),
        }
    }
}

/// An image whose tables were looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked {
    /// The image.
    pub path: PathBuf,
    /// What was found.
    pub found: Findings,
}

impl Checked {
    /// Nothing is wrong with it.
    pub fn is_good(&self) -> bool {
        let Findings { leaked, errors, marked, .. } = self.found;
        leaked == 0 && errors == 0 && !marked
    }

    /// Repairing it puts right what is wrong: nothing but what it counts.
    pub fn can_be_repaired(&self) -> bool {
        !self.is_good() && self.found.words.iter().all(|words| words.contains("counted"))
    }

    /// What was found, for a person.
    pub fn words(&self) -> String {
        let Findings { leaked, errors, words, marked, .. } = &self.found;
        let mut all = words.clone();
        if *marked {
            all.push(
                "It was not closed cleanly: the next machine that uses it, or repairing it, puts that right.".into(),
            );
        }
        all.push(match (errors, leaked) {
            (0, 0) => "Nothing is wrong with it.".to_owned(),
            (0, 1) => "One cluster is lost space; its data is whole. Repairing it takes it back.".to_owned(),
            (0, leaked) => {
                format!("{leaked} clusters are lost space; its data is whole. Repairing it takes them back.")
            }
            (errors, _) => {
                let errors = if *errors == 1 { "One error".to_owned() } else { format!("{errors} errors") };
                format!("{errors}: copy what is in it with 'orangery disk convert' before anything else.")
            }
        });
        all.join("\n")
    }
}

/// Runs a tool, and has it end once `progress` says no.
fn with<T>(progress: Progress<'_>, run: impl FnOnce(&mut Job<'_>) -> Result<T, ToolError>) -> Result<T, JobError> {
    let cancel = AtomicBool::new(false);
    let mut told = |done: u64, total: u64| {
        if !progress(done, total) {
            cancel.store(true, Ordering::Relaxed);
        }
    };
    Ok(run(&mut Job { progress: &mut told, cancel: &cancel })?)
}

/// An image that is about to be worked on. A machine's is locked with its machine.
struct Held {
    path: PathBuf,
    machine: Option<(Machine, usize, VmLock)>,
}

impl Disk {
    /// Takes it, to change it or only to look through it. A file that is a disk of a machine is taken as that.
    fn hold(&self, library: Option<&Library>, change: bool) -> Result<Held, JobError> {
        let (mut machine, disk) = match (self, library) {
            (Disk::Of { machine, disk }, Some(library)) => (library.load(machine)?, *disk),
            (Disk::Of { machine, .. }, None) => {
                return Err(LibraryError::NotFound { name: machine.clone(), near: None }.into());
            }
            (Disk::File(path), library) => {
                match library.map(|library| owner(library, path, change)).transpose()?.flatten() {
                    Some(found) => found,
                    None => return Ok(Held { path: path.clone(), machine: None }),
                }
            }
        };
        let lock = machine.lock()?;
        let path = if change { machine.disk_to_change(disk)? } else { machine.disk_image(disk)? };
        Ok(Held { path, machine: Some((machine, disk, lock)) })
    }
}

/// The machine that has an image as a disk, and which disk that is.
fn owner(library: &Library, image: &Path, change: bool) -> Result<Option<(Machine, usize)>, LibraryError> {
    // One that is not there is told of by whoever opens it.
    let Ok(image) = image.canonicalize() else { return Ok(None) };
    for machine in library.list()?.into_iter().filter_map(|entry| entry.machine.ok()) {
        match machine.disk_of(&image) {
            Ok(Some(disk)) => return Ok(Some((machine, disk))),
            Err(error) if change => return Err(error),
            Ok(None) | Err(_) => {}
        }
    }
    Ok(None)
}

/// What an image is. A machine may be using it.
///
/// # Errors
/// It can't be read, or is none.
pub fn info(path: &Path) -> Result<Info, JobError> {
    Ok(tools::info(path)?)
}

/// Makes a disk larger, and says how large it is now. A machine with a timeline keeps a checkpoint there first.
///
/// # Errors
/// It would be smaller, it is in use, no checkpoint could be kept, or the host refuses something: it is as large as it was then.
pub fn grow(library: Option<&Library>, disk: &Disk, wanted: Size, first: First) -> Result<u64, JobError> {
    let mut held = disk.hold(library, true)?;
    let now = tools::info(&held.path)?.layers.first().map_or(0, |layer| layer.virtual_size);
    let size = match wanted {
        Size::To(size) => size,
        Size::By(more) => now.saturating_add(more),
    };
    if let Some((machine, disk, _)) = &mut held.machine
        && first == First::Keep
        && size > now
    {
        machine.keep_on_timeline().map_err(JobError::no_checkpoint(machine))?;
        held.path = machine.disk_image(*disk)?;
    }
    tools::grow(&held.path, size)?;
    Ok(size)
}

/// Gives the host back what an image takes and does not need. Says how many bytes it took and takes.
///
/// # Errors
/// It is in use, the host refuses something, or it was given up: it holds what it held.
pub fn compact(library: Option<&Library>, disk: &Disk, progress: Progress<'_>) -> Result<(u64, u64), JobError> {
    let held = disk.hold(library, true)?;
    with(progress, |job| tools::compact(&held.path, job))
}

/// What compacting `name` brought, for a person.
pub fn compacted(name: &str, before: u64, after: u64) -> String {
    let takes = size::human(after);
    match before.saturating_sub(after) {
        0 => format!("{name} takes {takes}, and has nothing to give back"),
        gained => format!("{name} takes {takes} now, {} less", size::human(gained)),
    }
}

/// Looks for what is wrong in an image's own tables; of a machine's disk, in those of all images that it stands on as well. With
/// `repair`, what can be is put right.
///
/// # Errors
/// It is in use, can't be read, or it was given up: it holds what it held.
pub fn check(
    library: Option<&Library>,
    disk: &Disk,
    repair: bool,
    progress: Progress<'_>,
) -> Result<Vec<Checked>, JobError> {
    let held = disk.hold(library, repair)?;
    let mut paths = vec![held.path.clone()];
    if held.machine.is_some() {
        let layers = tools::info(&held.path)?.layers;
        paths.extend(layers.into_iter().skip(1).map(|layer| layer.path));
    }
    let mut checked = Vec::new();
    for path in paths {
        let mut found = with(progress, |job| tools::check(&path, false, job))?;
        // What is whole stays as it is, and what other machines have as well.
        let wrong = !Checked { path: path.clone(), found: found.clone() }.is_good();
        if repair && wrong && (held.machine.is_none() || is_own(&path)) {
            found = with(progress, |job| tools::check(&path, true, job))?;
        }
        checked.push(Checked { path, found });
    }
    Ok(checked)
}

/// Copies an image, of any format that can be read, to a file that is not there yet.
///
/// # Errors
/// It can't be read, the host has no room, or it was given up: there is no copy then.
pub fn convert(from: &Path, to: &Path, target: Target, progress: Progress<'_>) -> Result<(), JobError> {
    with(progress, |job| tools::convert(from, to, target, job))
}

/// Has a disk of a machine, which is off and has no snapshots, in another format: it goes on with a copy, and the old image goes.
///
/// # Errors
/// Something needs the image as it is, the host has no room, or it was given up: nothing is changed then.
pub fn switch(
    library: &Library,
    which: &str,
    disk: usize,
    format: Format,
    progress: Progress<'_>,
) -> Result<Machine, JobError> {
    let mut machine = library.load(which)?;
    let _lock = machine.lock()?;
    machine.switch_disk(disk, format, progress)?;
    Ok(machine)
}

/// Gives a machine, which is off, one more disk, empty and sparse, behind this controller, or the one that suits it. Says which it
/// is, from 0.
///
/// # Errors
/// It has as many as it can, goes on from where it was suspended, or the host refuses something: nothing is changed then.
pub fn add(library: &Library, which: &str, size: u64, bus: Option<DiskBus>) -> Result<(Machine, usize), JobError> {
    let mut machine = library.load(which)?;
    let _lock = machine.lock()?;
    let disk = machine.add_disk(size, bus)?;
    Ok((machine, disk))
}

/// What a new file's name says of its format.
pub fn by_name(path: &Path) -> Format {
    let raw = |ending: &std::ffi::OsStr| ending.eq_ignore_ascii_case("raw") || ending.eq_ignore_ascii_case("img");
    if path.extension().is_some_and(raw) { Format::Raw } else { Format::Qcow2 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::library::{DiskRefusal, HostLimits, NewDisk, NewMachine, Timeline};
    use vmm_core::backend::disk::{self, CreateOptions};
    use vmm_core::config::MAX_DISKS;

    const SIZE: u64 = 2 << 20;

    /// A machine with a raw disk that begins with a word.
    fn library() -> (tempfile::TempDir, Library, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let library = Library::open(dir.path().join("machines")).unwrap();
        let mut new = NewMachine::with_defaults("a", &HostLimits::read(dir.path()));
        (new.memory_mib, new.disks) = (64, vec![NewDisk::create(SIZE)]);
        let image = library.create(&new).unwrap().disk_image(0).unwrap();
        let mut bytes = vec![0; SIZE as usize];
        bytes[..4].copy_from_slice(b"word");
        std::fs::write(&image, &bytes).unwrap();
        (dir, library, image)
    }

    fn a() -> Disk {
        Disk::Of { machine: "a".into(), disk: 0 }
    }

    fn on(_: u64, _: u64) -> bool {
        true
    }

    fn image(library: &Library) -> PathBuf {
        library.load("a").unwrap().disk_image(0).unwrap()
    }

    fn word(library: &Library) -> Vec<u8> {
        tools::start(&image(library), 512).unwrap().0[..4].to_vec()
    }

    fn refusal<T: std::fmt::Debug>(done: Result<T, JobError>) -> DiskRefusal {
        match done {
            Err(JobError::Library(LibraryError::Disk(refusal))) => refusal,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_compacting_brought_is_told_as_it_is() {
        assert_eq!(compacted("Disk 1", 3 << 20, 1 << 20), "Disk 1 takes 1 MiB now, 2 MiB less");
        assert_eq!(compacted("Disk 1", 1 << 20, 1 << 20), "Disk 1 takes 1 MiB, and has nothing to give back");
    }

    #[test]
    fn one_error_is_told_as_one() {
        let checked =
            |errors, leaked| Checked { path: "a".into(), found: Findings { errors, leaked, ..Findings::default() } };
        assert!(checked(1, 0).words().starts_with("One error:") && checked(2, 0).words().starts_with("2 errors:"));
        assert!(
            checked(0, 1).words().starts_with("One cluster is") && checked(0, 2).words().starts_with("2 clusters are")
        );
    }

    #[test]
    fn a_disk_is_in_another_format_from_then_on_and_nothing_else_is_left() {
        let (_dir, library, _) = library();
        for (format, name) in [(Format::Qcow2, "disk-0.qcow2"), (Format::Raw, "disk-0.raw")] {
            let mut last = (0, 0);
            switch(&library, "a", 0, format, &mut |done, total| {
                assert!(done >= last.0, "{done} after {last:?}");
                last = (done, total);
                true
            })
            .unwrap();
            assert_eq!((last.0, last.1), (2 * SIZE, 2 * SIZE));
            let image = image(&library);
            assert_eq!((image.file_name().unwrap().to_str(), disk::detect(&image).unwrap()), (Some(name), format));
            assert_eq!(word(&library), b"word");
            assert_eq!(std::fs::read_dir(image.parent().unwrap()).unwrap().count(), 1);
            switch(&library, "a", 0, format, &mut |_, _| panic!("nothing is to be copied")).unwrap();
            assert_eq!(self::image(&library), image);
        }
    }

    #[test]
    fn a_machine_gets_one_more_disk_which_is_empty_and_behind_the_controller_of_the_first() {
        let (_dir, library, first) = library();
        let mut machine = library.load("a").unwrap();
        machine.config.disks[0].bus = DiskBus::Sata;
        machine.write().unwrap();
        machine.take_snapshot("s", "").unwrap();
        let (machine, number) = add(&library, "a", 3 << 20, None).unwrap();
        let (image, kept) = (machine.disk_image(1).unwrap(), library.load("a").unwrap());
        assert_eq!((number, kept.config.disks.len(), kept.config.disks[1].bus), (1, 2, DiskBus::Sata));
        assert_eq!(
            (image.file_name().unwrap().to_str(), kept.disk_image(1).unwrap()),
            (Some("disk-1.raw"), image.clone())
        );
        assert_eq!(
            (std::fs::metadata(&image).unwrap().len(), tools::info(&image).unwrap().layers[0].host_size),
            (3 << 20, 0)
        );
        // Those that were there are there yet, the snapshot's too.
        assert!(first.exists() && kept.disk_image(0).unwrap().exists());
        let wrong = |size| match add(&library, "a", size, None).unwrap_err() {
            JobError::Library(LibraryError::Config(errors)) => errors[0].field.clone(),
            other => panic!("{other}"),
        };
        assert_eq!([wrong(0), wrong((1 << 20) + 1)], ["disks[2].size", "disks[2].size"]);
        add(&library, "a", 1 << 20, Some(DiskBus::Nvme)).unwrap();
        for _ in 3..MAX_DISKS {
            add(&library, "a", 1 << 20, None).unwrap();
        }
        assert_eq!(wrong(1 << 20), "disks");
        // Where SATA has no port left, they are behind the default.
        let disks = library.load("a").unwrap().config.disks;
        let behind = |bus| disks.iter().filter(|disk| disk.bus == bus).count();
        assert_eq!((behind(DiskBus::Nvme), behind(DiskBus::Sata) + behind(DiskBus::default())), (1, MAX_DISKS - 1));
        assert!(behind(DiskBus::Sata) > 2 && behind(DiskBus::default()) > 2);
    }

    #[test]
    fn a_disk_that_is_not_turned_into_another_format_after_all_is_what_it_was() {
        let (_dir, library, first) = library();
        let disks = first.parent().unwrap().to_path_buf();
        let unchanged = |library: &Library, image: &Path| {
            assert_eq!((self::image(library), word(library)), (image.to_path_buf(), b"word".to_vec()));
        };
        for last in [0, SIZE] {
            let given_up = switch(&library, "a", 0, Format::Qcow2, &mut |done, _| done < last);
            assert!(given_up.unwrap_err().is_cancelled());
            unchanged(&library, &first);
            assert_eq!(std::fs::read_dir(&disks).unwrap().count(), 1);
        }
        assert!(matches!(refusal(switch(&library, "a", 1, Format::Qcow2, &mut on)), DiskRefusal::None { .. }));
        library.load("a").unwrap().take_snapshot("s", "").unwrap();
        assert!(matches!(refusal(switch(&library, "a", 0, Format::Raw, &mut on)), DiskRefusal::Snapshots { .. }));
        // What the guest made look like an image is a raw one all the same.
        let (_dir, library, raw) = self::library();
        let mut bytes = std::fs::read(&raw).unwrap();
        switch(&library, "a", 0, Format::Qcow2, &mut on).unwrap();
        bytes[..4].copy_from_slice(b"QFI\xfb");
        let options = disk::OpenOptions { readonly: false, direct: false };
        let mut open = disk::open(&image(&library), options).unwrap();
        let scratch = std::sync::Arc::new(disk::Scratch::new(512));
        disk::Buffers::own(&scratch, 512).copy_from(&bytes[..512]);
        let buffers = disk::Buffers::own(&scratch, 512);
        open.submit(0, disk::Request::Write { offset: 0, buffers, durable: false });
        open.drain();
        open.completed().unwrap().result.unwrap();
        open.settle().unwrap();
        drop(open);
        switch(&library, "a", 0, Format::Raw, &mut on).unwrap();
        assert_eq!((word(&library), disk::detect(&image(&library)).unwrap()), (b"QFI\xfb".to_vec(), Format::Raw));
    }

    #[test]
    fn a_disk_that_grows_keeps_a_checkpoint_first_and_one_that_would_shrink_none() {
        let (_dir, library, first) = library();
        // By its path it is the machine's disk all the same.
        let file = Disk::File(first.clone());
        assert_eq!(grow(Some(&library), &file, "+2M".parse().unwrap(), First::Keep).unwrap(), 2 * SIZE);
        let mut machine = library.load("a").unwrap();
        machine.timeline = Some(Timeline::default());
        library.save(&machine).unwrap();
        assert!(grow(Some(&library), &a(), Size::To(SIZE), First::Keep).is_err());
        assert_eq!(library.load("a").unwrap().timeline_points().unwrap().len(), 0);
        assert_eq!(grow(Some(&library), &a(), Size::To(3 * SIZE), First::Keep).unwrap(), 3 * SIZE);
        let size = |library: &Library| disk::facts(&image(library)).unwrap().size;
        assert_eq!((size(&library), word(&library)), (3 * SIZE, b"word".to_vec()));
        let points = library.load("a").unwrap().timeline_points().unwrap();
        assert_eq!(points.len(), 1);
        // The image that the checkpoint has stays as it is.
        let refused = grow(Some(&library), &Disk::File(first), Size::By(512), First::Keep);
        assert!(matches!(refusal(refused), DiskRefusal::OfSnapshot { .. }));
        grow(Some(&library), &a(), Size::By(SIZE), First::Lose).unwrap();
        assert_eq!(library.load("a").unwrap().timeline_points().unwrap().len(), 1);
        let mut machine = library.load("a").unwrap();
        machine.restore_snapshot(&points[0].id, false).unwrap();
        assert_eq!((size(&library), word(&library)), (2 * SIZE, b"word".to_vec()));
    }

    #[test]
    fn without_the_checkpoint_that_should_come_first_a_disk_stays_as_large_as_it_is() {
        let (dir, library, first) = library();
        let outside = dir.path().join("outside.img");
        std::fs::rename(&first, &outside).unwrap();
        let mut machine = library.load("a").unwrap();
        machine.config.disks[0].path = outside.clone();
        machine.timeline = Some(Timeline::default());
        library.save(&machine).unwrap();
        let refused = grow(Some(&library), &a(), Size::By(SIZE), First::Keep).unwrap_err();
        assert!(matches!(refused, JobError::NoCheckpoint { .. }) && !refused.is_cancelled(), "{refused:?}");
        assert_eq!(std::fs::metadata(&outside).unwrap().len(), SIZE);
        assert!(matches!(refusal(switch(&library, "a", 0, Format::Qcow2, &mut on)), DiskRefusal::Outside { .. }));
        grow(Some(&library), &a(), Size::By(SIZE), First::Lose).unwrap();
        assert_eq!(std::fs::metadata(&outside).unwrap().len(), 2 * SIZE);
    }

    #[test]
    fn the_disks_of_a_machine_that_runs_or_is_shared_are_left_alone() {
        let (_dir, library, first) = library();
        let lock = VmLock::take(library.load("a").unwrap().folder(), true).unwrap().unwrap();
        for disk in [a(), Disk::File(first.clone())] {
            for refused in [
                grow(Some(&library), &disk, Size::By(SIZE), First::Keep).map(drop),
                compact(Some(&library), &disk, &mut on).map(drop),
                check(Some(&library), &disk, true, &mut on).map(drop),
                switch(&library, "a", 0, Format::Qcow2, &mut on).map(drop),
            ] {
                let Err(JobError::Library(error @ LibraryError::Running { .. })) = refused else {
                    panic!("{refused:?}")
                };
                assert!(error.to_string().contains("shut it down first"));
            }
        }
        drop(lock);
        std::fs::hard_link(&first, first.with_file_name("other.img")).unwrap();
        for refused in [
            grow(Some(&library), &a(), Size::By(SIZE), First::Keep).map(drop),
            compact(Some(&library), &a(), &mut on).map(drop),
            switch(&library, "a", 0, Format::Qcow2, &mut on).map(drop),
        ] {
            assert!(matches!(refusal(refused), DiskRefusal::Shared { .. }));
        }
    }

    #[test]
    fn all_images_that_a_disk_stands_on_are_checked_and_can_be_given_up() {
        let (_dir, library, first) = library();
        library.load("a").unwrap().take_snapshot("s", "").unwrap();
        let checked = check(Some(&library), &a(), false, &mut on).unwrap();
        let paths: Vec<&Path> = checked.iter().map(|one| one.path.as_path()).collect();
        assert_eq!(paths, [image(&library).as_path(), first.as_path()]);
        assert!(checked.iter().all(Checked::is_good));
        assert!(check(Some(&library), &a(), false, &mut |_, _| false).unwrap_err().is_cancelled());
        compact(Some(&library), &a(), &mut on).unwrap();
    }

    #[test]
    fn what_is_wrong_is_told_and_repaired_where_it_is_a_matter_of_counting() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("a.qcow2");
        disk::create(&image, CreateOptions { cluster: 512, ..CreateOptions::thin(SIZE) }).unwrap();
        let file = std::fs::File::options().read(true).write(true).open(&image).unwrap();
        use std::os::unix::fs::FileExt;
        // qcow2 specification: the refcount table's place is at byte 48; its first entry is that of the first block. A cluster
        // that nothing uses is counted once.
        let mut word = [0; 8];
        file.read_exact_at(&mut word, 48).unwrap();
        let table = u64::from_be_bytes(word);
        file.read_exact_at(&mut word, table).unwrap();
        let block = u64::from_be_bytes(word);
        let end = file.metadata().unwrap().len() / 512;
        file.write_all_at(&[0; 512], end * 512).unwrap();
        file.write_all_at(&1u16.to_be_bytes(), block + 2 * end).unwrap();
        drop(file);
        let disk = Disk::File(image);
        let checked = check(None, &disk, false, &mut on).unwrap();
        assert!(checked[0].found.leaked == 1 && checked[0].can_be_repaired(), "{checked:?}");
        assert!(checked[0].words().contains("lost space"));
        let checked = check(None, &disk, true, &mut on).unwrap();
        assert!(checked[0].is_good(), "{checked:?}");
    }

    #[test]
    fn sizes_are_written_whole_or_as_what_is_added() {
        assert_eq!("40G".parse(), Ok(Size::To(40 << 30)));
        assert_eq!(" +512M".parse(), Ok(Size::By(512 << 20)));
        assert!("-1G".parse::<Size>().is_err());
    }
}
