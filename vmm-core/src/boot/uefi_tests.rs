use std::fs;

use super::*;

/// Folders of descriptors, lowest rank first, and one of images.
struct Rig {
    dir: tempfile::TempDir,
    folders: Vec<PathBuf>,
}

fn rig() -> Rig {
    let dir = tempfile::tempdir().unwrap();
    let folders: Vec<PathBuf> = ["share", "etc", "home"].iter().map(|name| dir.path().join(name)).collect();
    folders.iter().for_each(|folder| fs::create_dir(folder).unwrap());
    Rig { dir, folders }
}

impl Rig {
    /// An image that looks like one; its path.
    fn image(&self, name: &str) -> String {
        let path = self.dir.path().join(name);
        let mut bytes = vec![1; 128 << 10];
        bytes[VOLUME_SIGNATURE].copy_from_slice(b"_FVH");
        fs::write(&path, bytes).unwrap();
        path.display().to_string()
    }

    /// Writes a descriptor with some members of its own kind.
    fn descriptor(
        &self,
        folder: usize,
        name: &str,
        code: &str,
        features: &[&str],
        change: impl Fn(&mut serde_json::Value),
    ) {
        let mut value = serde_json::json!({
            "description": name,
            "interface-types": ["uefi"],
            "mapping": {
                "device": "flash",
                "executable": { "filename": self.image(code), "format": "raw" },
                "nvram-template": { "filename": self.image(&format!("{code}.vars")), "format": "raw" }
            },
            "targets": [{ "architecture": "x86_64", "machines": ["pc-i440fx-*", "pc-q35-*"] }],
            "features": features,
            "tags": [],
            "a member of a later version": { "x": 1 }
        });
        change(&mut value);
        fs::write(self.folders[folder].join(name), value.to_string()).unwrap();
    }

    fn plain(&self, folder: usize, name: &str, code: &str) {
        self.descriptor(folder, name, code, &["acpi-s3", "a feature of a later version"], |_| ());
    }

    fn found(&self, secure: bool) -> Result<String, String> {
        let uefi = Uefi::choose(secure, false, &self.folders, &[]).map_err(|error| error.to_string())?;
        Ok(uefi.code.file_name().unwrap().to_string_lossy().into_owned())
    }
}

#[test]
fn descriptors_are_tried_by_name_and_a_later_folder_hides_a_namesake() {
    let rig = rig();
    rig.plain(0, "60-b.json", "distribution");
    assert_eq!(rig.found(false).unwrap(), "distribution");
    rig.plain(1, "70-a.json", "later");
    assert_eq!(rig.found(false).unwrap(), "distribution");
    rig.plain(2, "50-c.json", "first");
    assert_eq!(rig.found(false).unwrap(), "first");
    rig.plain(1, "50-c.json", "hidden");
    assert_eq!(rig.found(false).unwrap(), "first");
    fs::write(rig.folders[2].join("50-c.json"), "").unwrap();
    assert_eq!(rig.found(false).unwrap(), "distribution");
    rig.plain(2, "60-b.json", "own");
    assert_eq!(rig.found(false).unwrap(), "own");
}

#[test]
fn what_this_machine_can_not_run_is_skipped_in_words() {
    let rig = rig();
    type Change = fn(&mut serde_json::Value);
    let changes: [(&str, Change); 8] = [
        ("no UEFI", |v| v["interface-types"] = serde_json::json!(["bios"])),
        ("another kind of machine", |v| v["targets"][0]["machines"] = serde_json::json!(["microvm", "pc-i440fx-*"])),
        ("another kind of machine", |v| v["targets"][0]["architecture"] = "aarch64".into()),
        ("system management mode", |v| v["features"] = serde_json::json!(["secure-boot", "requires-smm"])),
        ("qemu-img convert", |v| v["mapping"]["executable"]["format"] = "qcow2".into()),
        ("no flash of their own", |v| v["mapping"]["mode"] = "stateless".into()),
        ("no flash of their own", |v| v["mapping"] = serde_json::json!({ "device": "memory", "filename": "/x" })),
        ("is not there", |v| v["mapping"]["executable"]["filename"] = "/no/such/file".into()),
    ];
    for (words, change) in changes {
        rig.descriptor(0, "10.json", "code", &[], change);
        let error = rig.found(false).unwrap_err();
        assert!(error.contains(words) && error.contains("10.json") && error.contains("package ovmf"), "{error}");
    }
    for text in ["{", "[]", "{\"mapping\": 1}"] {
        fs::write(rig.folders[0].join("10.json"), text).unwrap();
        assert!(rig.found(false).unwrap_err().contains("no firmware descriptor"));
    }
    rig.plain(0, "90.json", "good");
    assert_eq!(rig.found(false).unwrap(), "good");
}

#[test]
fn firmware_with_keys_is_for_secure_boot_and_for_nothing_else() {
    let rig = rig();
    rig.descriptor(0, "10.json", "keys", &["secure-boot", "enrolled-keys"], |_| ());
    assert_eq!(rig.found(true).unwrap(), "keys");
    assert!(rig.found(false).is_err());
    rig.plain(0, "20.json", "plain");
    assert_eq!(rig.found(false).unwrap(), "plain");
    fs::remove_file(rig.folders[0].join("10.json")).unwrap();
    let error = rig.found(true).unwrap_err();
    assert!(error.contains("Microsoft's keys"), "{error}");
}

#[test]
fn firmware_that_needs_system_management_mode_is_taken_where_there_is_no_other_and_the_host_has_it() {
    let rig = rig();
    let found = |secure, smm| Uefi::choose(secure, smm, &rig.folders, &[]).map(|uefi| (uefi.code, uefi.smm));
    let image = |name: &str| rig.dir.path().join(name);
    rig.descriptor(0, "10.json", "guarded", &["secure-boot", "enrolled-keys", "requires-smm"], |_| ());
    rig.descriptor(0, "20.json", "guarded-plain", &["requires-smm"], |_| ());
    assert_eq!(found(true, true).unwrap(), (image("guarded"), true));
    assert_eq!(found(false, true).unwrap(), (image("guarded-plain"), true));
    let error = found(true, false).unwrap_err().to_string();
    assert!(error.contains("system management mode, which this computer's KVM does not have"), "{error}");
    rig.plain(0, "80.json", "plain");
    rig.descriptor(0, "90.json", "keys", &["secure-boot", "enrolled-keys"], |_| ());
    assert_eq!(found(false, true).unwrap(), (image("plain"), false));
    assert_eq!(found(true, true).unwrap(), (image("keys"), false));
}

#[test]
fn known_places_are_looked_at_when_there_is_no_descriptor() {
    let rig = rig();
    let known = known(&[rig.dir.path().to_path_buf()], &[]);
    assert!(Uefi::choose(false, false, &rig.folders, &known).is_err());
    rig.image("OVMF_CODE.fd");
    assert!(Uefi::choose(false, false, &rig.folders, &known).is_err(), "code without variables is of no use");
    rig.image("OVMF_VARS.fd");
    let uefi = Uefi::choose(false, false, &rig.folders, &known).unwrap();
    assert_eq!(uefi.template.file_name().unwrap(), "OVMF_VARS.fd");
    assert_eq!(uefi.read().unwrap().code.len(), 128 << 10);
}

#[test]
fn images_that_can_not_be_firmware_are_refused() {
    let rig = rig();
    let good = PathBuf::from(rig.image("good"));
    let bad = rig.dir.path().join("bad");
    let code = |bytes: &[u8]| {
        fs::write(&bad, bytes).unwrap();
        Uefi { code: bad.clone(), template: good.clone(), description: String::new(), smm: false }.read()
    };
    for bytes in [&[][..], &[1; 4096], &[1; 100_000], &[0; 1 << 17], &[0xff; 1 << 17]] {
        assert!(matches!(code(bytes), Err(BootError::Format { .. })), "{}", bytes.len());
    }
    let template = |bytes: &[u8]| {
        fs::write(&bad, bytes).unwrap();
        Uefi { code: good.clone(), template: bad.clone(), description: String::new(), smm: false }.read()
    };
    for bytes in [&[][..], &[1; 8192], &[1; 100], &vec![1; MAX_SIZE]] {
        assert!(matches!(template(bytes), Err(BootError::Format { .. })), "{}", bytes.len());
    }
}

#[test]
fn this_host_s_firmware_is_what_its_package_says() {
    // The package is in ./dev's list of what machines run with.
    let plain = Uefi::find(false, false).unwrap();
    let images = plain.read().unwrap();
    assert!(images.code.len() + images.variables.len() <= MAX_SIZE);
    let enforces = secure_boot::is_built_in(&images.code);
    assert_eq!(enforces, plain.with_keys().is_ok());
    // System management mode only if that is what it takes.
    assert_eq!(Uefi::find(true, true).unwrap().smm, !enforces);
}
