//! `orangery disk`: disk images by themselves.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use vmm_core::backend::disk::tools::{Info, Target};
use vmm_core::backend::disk::{self, CreateOptions, Findings, Format, Identity};
use vmm_core::base::explain;
use vmm_core::config::DiskBus;

use super::args::{DiskVerb, Which};
use super::progress::Progress;
use super::verbs::{Out, library};
use super::{CliError, Exit};
use crate::jobs::disks::{self, Checked, Size};
use crate::jobs::{Disk, First};
use crate::library::{Library, size};
use crate::session::Signals;

/// Does what the command line says.
pub fn perform(out: Out, verb: DiskVerb) -> Result<(), CliError> {
    match verb {
        DiskVerb::Info { file } => info(out, &file),
        DiskVerb::Create { file, size, format, backing, cluster } => {
            create(out, &file, size, format, backing.as_deref(), cluster)
        }
        DiskVerb::Convert { from, to, format, cluster } => {
            let target = Target { format: format.unwrap_or_else(|| disks::by_name(&to)), cluster: small(cluster)? };
            with_progress("Copying", |progress| disks::convert(&from, &to, target, progress))?;
            let value = json!({ "file": to, "format": target.format.name() });
            out.say(&value, &format!("Made {} ({})", to.display(), target.format.name()));
            Ok(())
        }
        DiskVerb::Grow { file, size, first } => grow(out, &file, &size, first.into()),
        DiskVerb::Compact { file } => {
            let (library, disk) = (the_library()?, Disk::File(file.clone()));
            let (before, after) =
                with_progress("Compacting", |progress| disks::compact(library.as_ref(), &disk, progress))?;
            let text = disks::compacted(&file.display().to_string(), before, after);
            out.say(&json!({ "file": file, "before": before, "after": after }), &text);
            Ok(())
        }
        DiskVerb::Check { file, repair } => check(out, &file, repair),
        DiskVerb::Add { which, size, bus } => add(out, &which, size, bus),
        DiskVerb::Switch { which, format, disk } => switch(out, &which, disk, format),
    }
}

/// The person's machines, if there are any: an image may be a disk of one, and is not touched where that can't be told.
fn the_library() -> Result<Option<Library>, CliError> {
    let root = Library::default_root().ok().filter(|root| root.is_dir());
    Ok(root.map(Library::open).transpose()?)
}

fn failed(error: impl std::error::Error + 'static) -> CliError {
    CliError::Words(Exit::Failed, explain(&error))
}

fn small(cluster: Option<u64>) -> Result<Option<u32>, CliError> {
    let words = || CliError::Words(Exit::Usage, "a cluster has 512 bytes to 2 MiB, a power of two".into());
    cluster.map(|size| u32::try_from(size).map_err(|_| words())).transpose()
}

/// Runs a tool, says how far it is on a terminal, and ends it when somebody asks for that.
fn with_progress<T, E: Into<CliError>>(
    what: &str,
    run: impl FnOnce(&mut dyn FnMut(u64, u64) -> bool) -> Result<T, E>,
) -> Result<T, CliError> {
    let signals = Signals::take().map_err(|source| CliError::Io { what: "wait for signals".into(), source })?;
    let (mut go_on, mut shown) = (true, Progress::new(false));
    let mut progress = |done: u64, all: u64| {
        go_on &= signals.next().is_none();
        shown.tell(done, all, |percent| format!("{what}: {percent} %"));
        go_on
    };
    run(&mut progress).map_err(Into::into)
}

fn info(out: Out, file: &Path) -> Result<(), CliError> {
    let Info { layers, shared_size, problems } = disks::info(file)?;
    let mut text = String::new();
    for (depth, layer) in layers.iter().enumerate() {
        let below = if depth > 0 { "stands on " } else { "" };
        let cluster = layer.cluster.map(|c| format!(", clusters of {}", size::human(c.into()))).unwrap_or_default();
        text += &format!(
            "{below}{}: {}, {} for the guest, {} on the host{cluster}\n",
            layer.path.display(),
            layer.format,
            size::human(layer.virtual_size),
            size::human(layer.host_size)
        );
    }
    if layers.len() > 1 {
        text += &format!("{} of that may be shared with others\n", size::human(shared_size));
    }
    for problem in &problems {
        text += &format!("{problem}\n");
    }
    let shown: Vec<_> = layers
        .iter()
        .map(|l| {
            json!({ "file": l.path, "format": l.format, "virtual_size": l.virtual_size, "host_size": l.host_size,
                "cluster": l.cluster })
        })
        .collect();
    out.say(&json!({ "layers": shown, "shared_size": shared_size, "problems": problems }), &text);
    Ok(())
}

fn create(
    out: Out,
    file: &Path,
    wanted: Option<u64>,
    format: Option<Format>,
    backing: Option<&Path>,
    cluster: Option<u64>,
) -> Result<(), CliError> {
    let format = format.unwrap_or_else(|| if backing.is_some() { Format::Qcow2 } else { disks::by_name(file) });
    let cluster = small(cluster)?;
    let usage = |words: &str| Err(CliError::Words(Exit::Usage, words.into()));
    let size = match (format, backing) {
        (Format::Raw, Some(_)) => return usage("a raw image can't stand on another: leave out --format raw"),
        (_, Some(backing)) => {
            let folder: PathBuf = file.parent().map(Path::to_path_buf).unwrap_or_default();
            let below = folder.join(backing);
            let Identity::Own(below_format) = disk::identify(&below).map_err(failed)? else {
                return usage("an image of another program can't be stood on; convert it first");
            };
            let own = disks::info(&below)?.layers.first().map_or(0, |layer| layer.virtual_size);
            let size = wanted.unwrap_or(own);
            let options = CreateOptions::overlay(size);
            let options = CreateOptions { cluster: cluster.unwrap_or(options.cluster), ..options };
            disk::create_overlay(file, backing, below_format, options).map_err(failed)?;
            size
        }
        (format, None) => {
            let Some(size) = wanted else { return usage("say how large it is to be, like 40G") };
            match format {
                Format::Qcow2 => {
                    let options = CreateOptions::thin(size);
                    let options = CreateOptions { cluster: cluster.unwrap_or(options.cluster), ..options };
                    disk::create(file, options).map_err(failed)?;
                }
                Format::Raw => disk::create_raw(file, size).map_err(failed)?,
            }
            size
        }
    };
    let text = format!("Made {} ({}, {})", file.display(), format.name(), size::human(size));
    out.say(&json!({ "file": file, "format": format.name(), "virtual_size": size }), &text);
    Ok(())
}

fn grow(out: Out, file: &Path, wanted: &str, first: First) -> Result<(), CliError> {
    let wanted: Size = wanted.parse().map_err(|words| CliError::Words(Exit::Usage, words))?;
    let size = disks::grow(the_library()?.as_ref(), &Disk::File(file.into()), wanted, first)?;
    let text = format!("{} has {} now; grow the guest's partitions in the guest", file.display(), size::human(size));
    out.say(&json!({ "file": file, "virtual_size": size }), &text);
    Ok(())
}

fn add(out: Out, which: &Which, size: u64, bus: Option<DiskBus>) -> Result<(), CliError> {
    let (machine, disk) = disks::add(&library()?, &which.name, size, bus)?;
    let file = machine.disk_image(disk)?;
    let text = format!("{:?}: disk {disk} is {}, of {}", machine.name, file.display(), size::human(size));
    out.say(&json!({ "file": file, "format": Format::Raw.name(), "virtual_size": size }), &text);
    Ok(())
}

fn switch(out: Out, which: &Which, disk: usize, format: Format) -> Result<(), CliError> {
    let library = library()?;
    let machine = with_progress("Copying", |progress| disks::switch(&library, &which.name, disk, format, progress))?;
    let (file, format) = (machine.disk_image(disk)?, format.name());
    let text = format!("{:?}: disk {disk} is {} now ({format})", machine.name, file.display());
    out.say(&json!({ "file": file, "format": format }), &text);
    Ok(())
}

fn check(out: Out, file: &Path, repair: bool) -> Result<(), CliError> {
    let (library, disk) = (the_library()?, Disk::File(file.into()));
    let checked = with_progress("Checking", |progress| disks::check(library.as_ref(), &disk, repair, progress))?;
    let shown = |Checked { path, found }: &Checked| {
        let Findings { leaked, errors, words, data_clusters, free_clusters, marked } = found;
        json!({ "file": path, "errors": errors, "leaked": leaked, "words": words, "marked": marked,
            "data_clusters": data_clusters, "free_clusters": free_clusters })
    };
    let Some((image, below)) = checked.split_first() else { return Ok(()) };
    let mut value = shown(image);
    value["file"] = json!(file);
    value["below"] = below.iter().map(shown).collect::<Value>();
    let text = match below {
        [] => image.words(),
        _ => checked.iter().map(|one| format!("{}:\n{}\n", one.path.display(), one.words())).collect(),
    };
    out.say(&value, &text);
    match checked.iter().find(|one| one.found.errors > 0 && !one.found.marked) {
        // The answer first; the code says that it is a bad one.
        Some(damaged) => Err(CliError::Words(Exit::Failed, format!("{} is damaged", damaged.path.display()))),
        None => Ok(()),
    }
}
