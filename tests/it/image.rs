//! The container image, as `deploy/image/oci.sh` packs it: by the OCI image specification, and from nothing but its folder.

use std::{
    collections::BTreeMap,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::{Value, json};

/// Runs a program, and gives what it prints.
fn said(program: impl AsRef<std::ffi::OsStr>, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn digest(bytes: &[u8]) -> String {
    let mut child = Command::new("sha256sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(bytes).unwrap();
    let output = child.wait_with_output().unwrap();
    format!("sha256:{}", String::from_utf8(output.stdout).unwrap().split(' ').next().unwrap())
}

/// A root of two files, and the image of it: its digest, and its archive unpacked.
fn image(home: &Path, name: &str) -> (String, PathBuf) {
    let root = home.join(format!("{name}-root"));
    for (file, text) in [("usr/local/bin/leasehold", "#!/bin/true"), ("lib64/ld.so", "x")] {
        let path = root.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/image/oci.sh");
    let archive = home.join(format!("{name}.tar"));
    let printed = said(script, &[text(&root), "registry.example.com/leasehold:1.2.3", text(&archive)]);
    let layout = home.join(name);
    fs::create_dir(&layout).unwrap();
    said("tar", &["-xf", text(&archive), "-C", text(&layout)]);
    (printed.trim().to_owned(), layout)
}

#[test]
fn the_image_is_an_oci_layout_whose_digests_are_right() {
    let home = tempfile::tempdir().unwrap();
    let (printed, layout) = image(home.path(), "one");
    let read = |file: &str| fs::read(layout.join(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
    let parse = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).unwrap();
    assert_eq!(parse(&read("oci-layout")), json!({"imageLayoutVersion": "1.0.0"}));

    // What a descriptor names is there, of that size and that content.
    let mut blobs = BTreeMap::new();
    let mut named = |descriptor: &Value| {
        let name = descriptor["digest"].as_str().unwrap().to_owned();
        let bytes = read(&format!("blobs/{}", name.replace(':', "/")));
        assert_eq!((digest(&bytes), Some(bytes.len() as u64)), (name.clone(), descriptor["size"].as_u64()));
        blobs.insert(name, bytes.clone());
        bytes
    };
    let index = parse(&read("index.json"));
    let [listed] = &index["manifests"].as_array().unwrap()[..] else { panic!("one image: {index}") };
    assert_eq!(listed["digest"], printed);
    assert_eq!(listed["annotations"]["io.containerd.image.name"], "registry.example.com/leasehold:1.2.3");
    let manifest = parse(&named(listed));
    let config = parse(&named(&manifest["config"]));
    let [layer] = &manifest["layers"].as_array().unwrap()[..] else { panic!("one layer: {manifest}") };
    let packed = named(layer);
    assert_eq!(blobs.len(), fs::read_dir(layout.join("blobs/sha256")).unwrap().count(), "nothing else is there");

    // It starts the program, and not as root.
    assert_eq!((&config["config"]["User"], &config["os"]), (&json!("65532:65532"), &json!("linux")));
    assert_eq!(config["config"]["Entrypoint"], json!(["/usr/local/bin/leasehold"]));
    assert_eq!(config["config"]["Cmd"], json!(["run", "--config=/etc/leasehold/leasehold.yaml"]));

    // The layer is the folder, owned by root and as old as can be; its name in the configuration is that of its content.
    let file = home.path().join("layer.tar.gz");
    fs::write(&file, packed).unwrap();
    let unpacked = Command::new("gzip").args(["-dc", text(&file)]).output().unwrap().stdout;
    assert_eq!(config["rootfs"]["diff_ids"], json!([digest(&unpacked)]));
    let list = said("tar", &["-tvzf", text(&file), "--numeric-owner", "--utc"]);
    let files: Vec<_> = list.lines().filter(|line| line.starts_with('-')).collect();
    assert!(
        files.len() == 2 && list.lines().all(|line| line.contains(" 0/0 ") && line.contains(" 1970-01-01 ")),
        "{list}"
    );
    assert!(files[1].ends_with(" usr/local/bin/leasehold"), "{list}");

    // What `docker load` reads.
    let old = parse(&read("manifest.json"));
    assert_eq!(old[0]["RepoTags"], json!(["registry.example.com/leasehold:1.2.3"]));
    assert_eq!(
        format!("sha256:{}", old[0]["Config"].as_str().unwrap().rsplit('/').next().unwrap()),
        manifest["config"]["digest"].as_str().unwrap()
    );
    assert_eq!(
        format!("sha256:{}", old[0]["Layers"][0].as_str().unwrap().rsplit('/').next().unwrap()),
        layer["digest"].as_str().unwrap()
    );
}

/// By its digest a cluster runs what was built and nothing else; that two builds agree is what makes it worth comparing.
#[test]
fn the_same_folder_makes_the_same_image_and_another_one_does_not() {
    let home = tempfile::tempdir().unwrap();
    let (one, _) = image(home.path(), "one");
    let (same, _) = image(home.path(), "same");
    assert_eq!(one, same);
    fs::create_dir_all(home.path().join("other-root/etc")).unwrap();
    let (other, _) = image(home.path(), "other");
    assert_ne!(one, other);
}
