//! `orangery disk`: disk images by themselves.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;
use vmm_core::backend::disk::tools::{self, Info, Job, Target, ToolError};
use vmm_core::backend::disk::{self, CreateOptions, Findings, Format, Identity};
use vmm_core::base::explain;

use super::args::DiskVerb;
use super::progress::Progress;
use super::verbs::Out;
use super::{CliError, Exit};
use crate::library::size;
use crate::session::Signals;

/// Does what the command line says.
pub fn perform(out: Out, verb: DiskVerb) -> Result<(), CliError> {
    match verb {
        DiskVerb::Info { file } => info(out, &file),
        DiskVerb::Create { file, size, format, backing, cluster } => {
            create(out, &file, size, format, backing.as_deref(), cluster)
        }
        DiskVerb::Convert { from, to, format, cluster } => {
            let target = Target { format: format.unwrap_or_else(|| by_name(&to)), cluster: small(cluster)? };
            with_progress("Copying", |job| tools::convert(&from, &to, target, job))?;
            let value = json!({ "file": to, "format": target.format.name() });
            out.say(&value, &format!("Made {} ({})", to.display(), target.format.name()));
            Ok(())
        }
        DiskVerb::Grow { file, size } => grow(out, &file, &size),
        DiskVerb::Compact { file } => {
            let (before, after) = with_progress("Compacting", |job| tools::compact(&file, job))?;
            let gained = size::human(before.saturating_sub(after));
            let text = format!("{} takes {} now, {gained} less", file.display(), size::human(after));
            out.say(&json!({ "file": file, "before": before, "after": after }), &text);
            Ok(())
        }
        DiskVerb::Check { file, repair } => check(out, &file, repair),
    }
}

fn failed(error: impl std::error::Error + 'static) -> CliError {
    CliError::Words(Exit::Failed, explain(&error))
}

fn tool(error: ToolError) -> CliError {
    let exit = if matches!(error, ToolError::Refused(_)) { Exit::Usage } else { Exit::Failed };
    CliError::Words(exit, explain(&error))
}

/// What a new file's name says of its format.
fn by_name(path: &Path) -> Format {
    let raw = |ending: &std::ffi::OsStr| ending.eq_ignore_ascii_case("raw") || ending.eq_ignore_ascii_case("img");
    if path.extension().is_some_and(raw) { Format::Raw } else { Format::Qcow2 }
}

fn small(cluster: Option<u64>) -> Result<Option<u32>, CliError> {
    let words = || CliError::Words(Exit::Usage, "a cluster has 512 bytes to 2 MiB, a power of two".into());
    cluster.map(|size| u32::try_from(size).map_err(|_| words())).transpose()
}

/// Runs a tool, says how far it is on a terminal, and ends it when somebody asks for that.
fn with_progress<T>(what: &str, run: impl FnOnce(&mut Job<'_>) -> Result<T, ToolError>) -> Result<T, CliError> {
    let signals = Signals::take().map_err(|source| CliError::Io { what: "wait for signals".into(), source })?;
    let (cancel, mut shown) = (AtomicBool::new(false), Progress::new(false));
    let mut progress = |done: u64, all: u64| {
        if signals.next().is_some() {
            cancel.store(true, Ordering::Relaxed);
        }
        shown.tell(done, all, |percent| format!("{what}: {percent} % of {}", size::human(all)));
    };
    let result = run(&mut Job { progress: &mut progress, cancel: &cancel });
    result.map_err(tool)
}

fn info(out: Out, file: &Path) -> Result<(), CliError> {
    let Info { layers, shared_size, problems } = tools::info(file).map_err(tool)?;
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
    let format = format.unwrap_or_else(|| if backing.is_some() { Format::Qcow2 } else { by_name(file) });
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
            let own = tools::info(&below).map_err(tool)?.layers.first().map_or(0, |layer| layer.virtual_size);
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

fn grow(out: Out, file: &Path, wanted: &str) -> Result<(), CliError> {
    let parse = |text: &str| size::parse(text).map_err(|words| CliError::Words(Exit::Usage, words));
    let size = match wanted.strip_prefix('+') {
        None => parse(wanted)?,
        Some(more) => {
            let now = tools::info(file).map_err(tool)?.layers.first().map_or(0, |layer| layer.virtual_size);
            now.saturating_add(parse(more)?)
        }
    };
    tools::grow(file, size).map_err(tool)?;
    let text = format!("{} has {} now; grow the guest's partitions in the guest", file.display(), size::human(size));
    out.say(&json!({ "file": file, "virtual_size": size }), &text);
    Ok(())
}

fn check(out: Out, file: &Path, repair: bool) -> Result<(), CliError> {
    match disk::detect(file).map_err(failed)? {
        Format::Raw => {
            out.say(
                &json!({ "file": file, "errors": 0, "leaked": 0 }),
                "A raw image has no tables: nothing can be wrong",
            );
            return Ok(());
        }
        Format::Qcow2 => {}
    }
    let found = if repair { disk::repair_file(file) } else { disk::check(file) };
    let Findings { leaked, errors, words, data_clusters, free_clusters, marked } = found.map_err(failed)?;
    let mut text = words.join("\n");
    if !text.is_empty() {
        text += "\n";
    }
    if marked {
        text += "It was not closed cleanly: the next machine that uses it, or --repair, puts that right.\n";
    }
    text += &match (errors, leaked) {
        (0, 0) => "Nothing is wrong with it".to_owned(),
        (0, leaked) => format!("{leaked} clusters are lost space; its data is whole. --repair takes them back"),
        (errors, _) => format!("{errors} errors: copy what is in it with 'orangery disk convert' before anything else"),
    };
    let value = json!({ "file": file, "errors": errors, "leaked": leaked, "words": words, "marked": marked,
        "data_clusters": data_clusters, "free_clusters": free_clusters });
    if errors > 0 && !marked {
        // The answer first; the code says that it is a bad one.
        out.say(&value, &text);
        return Err(CliError::Words(Exit::Failed, format!("{} is damaged", file.display())));
    }
    out.say(&value, &text);
    Ok(())
}
