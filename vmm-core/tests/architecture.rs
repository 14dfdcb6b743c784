//! The layers of docs/architecture.md, checked against the code: a module imports from its own layer or from those below,
//! and no device imports another.

// Clippy counts only the functions that are tests as tests, not what they call.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

/// Each top module and its layer, as docs/architecture.md has them.
const LAYERS: &[(&str, u8)] = &[
    ("vm", 7),
    ("checkpoint", 6),
    ("sandbox", 6),
    ("boot", 5),
    // What the user asked for: read by those who build the machine, never by a device.
    ("config", 5),
    ("kvm", 4),
    ("vcpu", 4),
    ("devices", 3),
    ("backend", 3),
    ("virtio", 2),
    ("pci", 2),
    ("hw", 1),
    ("base", 0),
];

/// One `crate::…` or `super::…` path in a module's code.
#[derive(Debug, PartialEq)]
struct Edge {
    /// The module's own path, such as `devices`, `virtio_rng`.
    from: Vec<String>,
    /// What it names, from the crate's root on.
    to: Vec<String>,
}

impl Edge {
    /// What is wrong with it, if anything.
    fn problem(&self) -> Option<String> {
        let (from, to) = (self.from.first()?, self.to.first()?);
        let layer = |name: &String| LAYERS.iter().find(|(module, _)| module == name).map(|(_, layer)| *layer);
        // Macros and types at the crate's root belong to no layer.
        let (mine, theirs) = (layer(from)?, layer(to)?);
        let path = |parts: &[String]| parts.join("::");
        if theirs > mine {
            return Some(format!("{} (layer {mine}) imports {} (layer {theirs})", path(&self.from), path(&self.to)));
        }
        if from == "devices"
            && to == "devices"
            && self.from.len() > 1
            && self.to.len() > 2
            && self.from[1] != self.to[1]
        {
            return Some(format!("the device {} imports the device {}", path(&self.from), path(&self.to)));
        }
        None
    }
}

/// All edges of a module's code, its tests and comments left out.
fn edges(from: &[String], code: &str) -> Vec<Edge> {
    let code = code.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let lines = code.lines().map(|line| line.split("//").next().unwrap_or_default());
    let code = lines.collect::<Vec<_>>().join(" ");
    let mut found = Vec::new();
    for (start, _) in code.match_indices("crate::") {
        // `$crate::` is a macro's, for whoever uses it.
        if !code[..start].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '$') {
            collect(&[], &code[start + "crate::".len()..], &mut |to| found.push(Edge { from: from.to_vec(), to }));
        }
    }
    for (start, _) in code.match_indices("super::") {
        if code[..start].ends_with("super::") {
            continue;
        }
        let mut rest = &code[start..];
        let mut place = from;
        while let Some(after) = rest.strip_prefix("super::") {
            rest = after;
            place = place.split_last().map_or(&[][..], |(_, above)| above);
        }
        collect(place, rest, &mut |to| found.push(Edge { from: from.to_vec(), to }));
    }
    found
}

/// Reads one path, or the tree of paths in braces, and passes on each from the crate's root.
fn collect(place: &[String], text: &str, found: &mut impl FnMut(Vec<String>)) {
    let text = text.trim_start();
    if let Some(tree) = text.strip_prefix('{') {
        let (mut depth, mut item) = (0, 0);
        for (at, character) in tree.char_indices() {
            match character {
                '{' => depth += 1,
                '}' if depth > 0 => depth -= 1,
                ',' | '}' if depth == 0 => {
                    collect(place, &tree[item..at], found);
                    item = at + 1;
                    if character == '}' {
                        return;
                    }
                }
                _ => {}
            }
        }
        return;
    }
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    if end == 0 {
        return;
    }
    let mut place = place.to_vec();
    place.push(text[..end].to_owned());
    match text[end..].strip_prefix("::") {
        Some(rest) if rest.starts_with(|c: char| c.is_alphabetic() || c == '{') => collect(&place, rest, found),
        _ => found(place),
    }
}

/// Every source file below `folder` that is not only for tests, with its module path.
fn modules(folder: &Path, place: &[String], found: &mut Vec<(Vec<String>, PathBuf)>) {
    let mut entries: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let is_for_tests = name == "testkit" || name == "tests" || name.ends_with("_tests");
        if is_for_tests {
            continue;
        }
        let mut module = place.to_vec();
        if name != "mod" && name != "lib" {
            module.push(name);
        }
        if path.is_dir() {
            modules(&path, &module, found);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            found.push((module, path));
        }
    }
}

#[test]
fn imports_only_point_down() {
    let mut files = Vec::new();
    modules(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &[], &mut files);
    let mut problems = Vec::new();
    for (module, path) in &files {
        if let Some(top) = module.first() {
            assert!(LAYERS.iter().any(|(name, _)| name == top), "the module '{top}' has no layer: add it to the table");
        }
        for edge in edges(module, &fs::read_to_string(path).unwrap()) {
            problems.extend(edge.problem().map(|problem| format!("{}: {problem}", path.display())));
        }
    }
    problems.dedup();
    assert!(problems.is_empty(), "\n{}", problems.join("\n"));
}

fn problems(from: &str, code: &str) -> Vec<String> {
    let from: Vec<String> = from.split("::").map(str::to_owned).collect();
    edges(&from, code).iter().filter_map(Edge::problem).collect()
}

#[test]
fn an_import_that_points_up_is_found_in_every_form() {
    for code in [
        "use crate::kvm::KvmVm;",
        "use crate::{base::Poller, vm::{Vm, VmEvent}};",
        "use crate::{\n    base::{A, B},\n    kvm,\n};",
        "fn f() { crate::vm::Vm::start() }",
        "use super::super::kvm::KvmVm;",
        "use crate::config::VmConfig;",
    ] {
        assert!(!problems("devices::virtio_rng", code).is_empty(), "{code}");
    }
}

#[test]
fn devices_may_not_know_one_another() {
    assert_eq!(problems("devices::ahci", "use crate::devices::virtio_blk::Blk;").len(), 1);
    assert_eq!(problems("devices::ahci", "use super::virtio_blk::{Blk, State};").len(), 2);
    assert_eq!(problems("devices::ahci::state", "use super::Ahci; use crate::devices::ahci::Port;").len(), 0);
}

#[test]
fn imports_from_below_comments_and_tests_are_fine() {
    let code = "use crate::backend::Disk; // not crate::vm::Vm\nuse crate::virtio::{Device, Io};\nuse super::State;
#[cfg(test)]\nmod tests {\n    use crate::vm::Vm;\n}";
    assert_eq!(problems("devices::virtio_rng", code), Vec::<String>::new());
}
