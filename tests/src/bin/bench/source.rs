//! What the program weighs: bytes of the binary, lines of each device.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::Bench;
use crate::figures::{Figure, Report, Series};

/// See the module.
pub fn measure(bench: &Bench, report: &mut Report) -> Result<()> {
    let mebibytes = |path: &Path| -> Result<f64> {
        let size = fs::metadata(path).with_context(|| format!("could not look at {}", path.display()))?.len();
        Ok(size as f64 / f64::from(1 << 20))
    };
    let ours = Series { name: "Orangery".into(), samples: vec![mebibytes(&bench.orangery)?] };
    let peer = find("qemu-system-x86_64").map(|path| mebibytes(&path)).transpose()?;
    let peer = peer.map(|size| Series { name: "QEMU, its libraries and firmware apart".into(), samples: vec![size] });
    report.add(Figure {
        name: "binary size".into(),
        unit: "MiB",
        more_is_better: false,
        ours,
        others: peer.into_iter().collect(),
    });
    let devices = orangery_tests::project().join("vmm-core/src/devices");
    let mut modules = entries(&devices)?;
    modules.retain(|path| path.file_stem() != Some(OsStr::new("mod")));
    for module in modules {
        let name = module.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        // A device's module is a file, a folder, or both: the folder then holds its parts or tests.
        if module.is_dir() && module.with_extension("rs").exists() {
            continue;
        }
        let mut lines = count(&module)?;
        let folder = module.with_extension("");
        if module.is_file() && folder.is_dir() {
            lines += count(&folder)?;
        }
        report.add(Figure {
            name: format!("lines of {name}, without tests"),
            unit: "lines",
            more_is_better: false,
            ours: Series { name, samples: vec![lines as f64] },
            others: Vec::new(),
        });
    }
    Ok(())
}

/// The program of this name in the path.
fn find(program: &str) -> Option<PathBuf> {
    let paths = std::env::var_os("PATH")?;
    std::env::split_paths(&paths).map(|folder| folder.join(program)).find(|path| path.is_file())
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let listed = fs::read_dir(folder).with_context(|| format!("could not list {}", folder.display()))?;
    let mut paths = listed.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}

/// Lines of a file, or of all in a folder.
fn count(path: &Path) -> Result<usize> {
    if path.is_dir() {
        return entries(path)?.iter().map(|path| count(path)).sum();
    }
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    if stem == "tests" || stem.ends_with("_tests") {
        return Ok(0);
    }
    let text = fs::read_to_string(path).with_context(|| format!("could not read {}", path.display()))?;
    Ok(lines(&text))
}

/// Lines without those of the tests, which are at the end or in a file of their own, and without blank ones.
fn lines(source: &str) -> usize {
    let mut lines = source.lines().filter(|line| !line.trim().is_empty());
    let mut count = 0;
    while let Some(line) = lines.next() {
        if line != "#[cfg(test)]" {
            count += 1;
        } else if !lines.next().is_some_and(|tests| tests.ends_with(';')) {
            break;
        }
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_and_blank_lines_are_not_counted() {
        assert_eq!(lines("//! A device.\n\nfn run() {}\n\n#[cfg(test)]\nmod tests {\n}\n"), 2);
        assert_eq!(lines("//! A device.\n\n#[cfg(test)]\nmod tests;\n\nfn run() {}\n"), 2);
    }
}
