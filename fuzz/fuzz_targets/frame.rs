//! A frame that decodes is encoded and decoded to the same command.
#![no_main]

use libfuzzer_sys::fuzz_target;
use remoting::RemotingCommand;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(mut command) = RemotingCommand::decode(bytes) {
        // A binary header cannot tell an empty remark from none.
        command.remark = command.remark.filter(|remark| !remark.is_empty());
        let frame = command.to_frame();
        let mut again = RemotingCommand::decode(&frame[4..]).expect("what was encoded decodes");
        // What the binary header cannot hold goes out as JSON, and a version is 16 bits wide in it.
        again.serialize_type = command.serialize_type;
        if i16::try_from(command.version).is_ok() {
            assert_eq!(again, command);
        }
    }
});
