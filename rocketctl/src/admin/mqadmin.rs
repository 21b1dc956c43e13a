//! mqadmin's command names and options, for hands and scripts that know them. Each becomes one of this program's own commands; what has no counterpart
//! is refused by name, with the list of those that have one.

use std::ffi::OsString;

use clap::{Args, Parser, Subcommand};

/// mqadmin's commands, as far as this program has them
#[derive(Parser, Debug)]
#[command(name = "mqadmin", version, max_term_width = 120)]
struct MqAdmin {
    #[command(subcommand)]
    command: Command,
}

#[derive(Args, Debug)]
struct Server {
    /// Name server address list, parted by ';'
    #[arg(short = 'n', long = "namesrvAddr")]
    namesrv: Option<String>,
}

#[derive(Subcommand, Debug)]
#[command(rename_all = "camelCase")]
enum Command {
    /// List cluster infos
    ClusterList {
        #[command(flatten)]
        server: Server,
    },
    /// Fetch all topic list from name server
    TopicList {
        #[command(flatten)]
        server: Server,
        #[arg(short = 'c', long = "clusterName")]
        cluster: Option<String>,
    },
    /// Examine topic route info
    TopicRoute {
        #[command(flatten)]
        server: Server,
        #[arg(short = 't', long)]
        topic: String,
    },
    /// Update or create topic
    UpdateTopic {
        #[command(flatten)]
        server: Server,
        #[arg(short = 't', long)]
        topic: String,
        #[arg(short = 'b', long = "brokerAddr")]
        broker: Option<String>,
        #[arg(short = 'c', long = "clusterName")]
        cluster: Option<String>,
        #[arg(short = 'r', long = "readQueueNums", default_value_t = 8)]
        read_queues: u16,
        #[arg(short = 'w', long = "writeQueueNums", default_value_t = 8)]
        write_queues: u16,
        /// 2 write, 4 read, 6 both
        #[arg(short = 'p', long, default_value = "6", value_parser = ["2", "4", "6"])]
        perm: String,
        #[arg(short = 'o', long, default_value = "false", value_parser = ["true", "false"])]
        order: String,
    },
    /// Delete topic from broker and name server
    DeleteTopic {
        #[command(flatten)]
        server: Server,
        #[arg(short = 't', long)]
        topic: String,
        #[arg(short = 'c', long = "clusterName")]
        cluster: String,
    },
    /// Fetch broker runtime status data
    BrokerStatus {
        #[command(flatten)]
        server: Server,
        #[arg(short = 'b', long = "brokerAddr")]
        broker: Option<String>,
    },
    /// Get broker config
    GetBrokerConfig {
        #[command(flatten)]
        server: Server,
        #[arg(short = 'b', long = "brokerAddr")]
        broker: Option<String>,
    },
    /// Update broker's config
    UpdateBrokerConfig {
        #[command(flatten)]
        server: Server,
        #[arg(short = 'b', long = "brokerAddr")]
        broker: Option<String>,
        #[arg(short = 'k', long)]
        key: String,
        #[arg(short = 'v', long)]
        value: String,
    },
    /// Query consumer's progress, speed
    ConsumerProgress {
        #[command(flatten)]
        server: Server,
        #[arg(short = 'g', long = "groupName")]
        group: Option<String>,
        #[arg(short = 't', long = "topicName")]
        topic: Option<String>,
    },
    /// Query message by id
    QueryMsgById {
        #[command(flatten)]
        server: Server,
        #[arg(short = 'i', long = "msgId")]
        id: String,
        #[arg(short = 't', long)]
        topic: Option<String>,
    },
    /// Query message by unique key
    QueryMsgByUniqueKey {
        #[command(flatten)]
        server: Server,
        #[arg(short = 'i', long = "msgId")]
        id: String,
        #[arg(short = 't', long)]
        topic: String,
    },
    /// Query message by key
    QueryMsgByKey {
        #[command(flatten)]
        server: Server,
        #[arg(short = 't', long)]
        topic: String,
        #[arg(short = 'k', long = "msgKey")]
        key: String,
    },
    /// Send a message
    SendMessage {
        #[command(flatten)]
        server: Server,
        #[arg(short = 't', long)]
        topic: String,
        #[arg(short = 'p', long)]
        body: String,
        #[arg(short = 'k', long)]
        key: Option<String>,
        #[arg(short = 'c', long)]
        tags: Option<String>,
    },
    /// Consume messages that are there
    ConsumeMessage {
        #[command(flatten)]
        server: Server,
        #[arg(short = 't', long)]
        topic: String,
    },
}

/// `args` with the program's name first; the result is a command line of `rocketctl`.
pub(crate) fn translate(args: &[OsString]) -> Result<Vec<OsString>, clap::Error> {
    let mut line = Line(vec!["rocketctl".into()]);
    let server = match MqAdmin::try_parse_from(args)?.command {
        Command::ClusterList { server } => {
            line.words(&["cluster", "list"]);
            server
        }
        Command::TopicList { server, cluster } => {
            line.words(&["topic", "list", "--all"])
                .option("--cluster", cluster);
            server
        }
        Command::TopicRoute { server, topic } => {
            line.words(&["topic", "route", "--output", "json"])
                .value(topic);
            server
        }
        Command::UpdateTopic {
            server,
            topic,
            broker,
            cluster,
            read_queues,
            write_queues,
            perm,
            order,
        } => {
            let perm = match perm.as_str() {
                "2" => "w",
                "4" => "r",
                _ => "rw",
            };
            line.words(&["topic", "create", "--perm", perm]);
            line.option("--read-queues", Some(read_queues.to_string()))
                .option("--write-queues", Some(write_queues.to_string()));
            line.option("--cluster", cluster).option("--broker", broker);
            if order == "true" {
                line.words(&["--order"]);
            }
            line.value(topic);
            server
        }
        Command::DeleteTopic {
            server,
            topic,
            cluster,
        } => {
            line.words(&["topic", "delete"])
                .option("--cluster", Some(cluster))
                .value(topic);
            server
        }
        Command::BrokerStatus { server, broker } => {
            line.words(&["broker", "status"]).option("--broker", broker);
            server
        }
        Command::GetBrokerConfig { server, broker } => {
            line.words(&["broker", "config"]).option("--broker", broker);
            server
        }
        Command::UpdateBrokerConfig {
            server,
            broker,
            key,
            value,
        } => {
            line.words(&["broker", "config"])
                .option("--broker", broker)
                .value(format!("{key}={value}"));
            server
        }
        Command::ConsumerProgress {
            server,
            group,
            topic,
        } => {
            line.words(&["consumer", "progress"])
                .option("--group", group)
                .option("--topic", topic);
            server
        }
        Command::QueryMsgById { server, id, topic } => {
            line.words(&["message", "view"])
                .option("--topic", topic)
                .value(id);
            server
        }
        Command::QueryMsgByUniqueKey { server, id, topic } => {
            line.words(&["message", "view"])
                .option("--topic", Some(topic))
                .value(id);
            server
        }
        Command::QueryMsgByKey { server, topic, key } => {
            line.words(&["message", "query"])
                .option("--topic", Some(topic))
                .option("--key", Some(key));
            server
        }
        Command::SendMessage {
            server,
            topic,
            body,
            key,
            tags,
        } => {
            line.words(&["send"])
                .option("--topic", Some(topic))
                .option("--body", Some(body))
                .option("--key", key)
                .option("--tag", tags);
            server
        }
        Command::ConsumeMessage { server, topic } => {
            line.words(&["consume", "--from-first"])
                .option("--topic", Some(topic));
            server
        }
    };
    if let Some(namesrv) = server.namesrv {
        line.0.insert(1, format!("--namesrv={namesrv}").into());
    }
    Ok(line.0)
}

struct Line(Vec<OsString>);

impl Line {
    fn words(&mut self, words: &[&str]) -> &mut Self {
        self.0.extend(words.iter().map(Into::into));
        self
    }

    /// With `=`, so that a value may begin with a dash.
    fn option(&mut self, name: &str, value: Option<String>) -> &mut Self {
        self.0
            .extend(value.map(|v| OsString::from(format!("{name}={v}"))));
        self
    }

    fn value(&mut self, value: String) {
        self.0.push(value.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn translated(text: &str) -> String {
        let args: Vec<OsString> = std::iter::once("mqadmin")
            .chain(text.split(' '))
            .map(OsString::from)
            .collect();
        match translate(&args) {
            Ok(line) => line
                .iter()
                .map(|w| w.to_string_lossy().into_owned())
                .collect::<Vec<_>>()
                .join(" "),
            Err(e) => format!("exit code {}", e.exit_code()),
        }
    }

    #[test]
    fn the_names_that_hands_know() {
        assert_eq!(
            translated("clusterList -n h:1"),
            "rocketctl --namesrv=h:1 cluster list"
        );
        assert_eq!(
            translated("updateTopic -n h:1 -c C -t T -r 4 -w 2 -p 4 -o true"),
            "rocketctl --namesrv=h:1 topic create --perm r --read-queues=4 --write-queues=2 --cluster=C --order T"
        );
        assert_eq!(
            translated("updateBrokerConfig -b b:2 -k a -v 1"),
            "rocketctl broker config --broker=b:2 a=1"
        );
        assert_eq!(translated("sendMessage -t T -p -x"), "exit code 2");
        assert_eq!(
            translated("queryMsgById -i ID"),
            "rocketctl message view ID"
        );
        assert_eq!(translated("statsAll"), "exit code 2");
        assert_eq!(translated("-h"), "exit code 0");
    }

    #[test]
    fn what_comes_out_is_understood() {
        for text in [
            "clusterList -n h:1",
            "topicList -c C",
            "topicRoute -t T",
            "updateTopic -b b:2 -t T",
            "updateTopic -c C -t T -o true",
            "deleteTopic -c C -t T",
            "brokerStatus -b b:2",
            "getBrokerConfig -b b:2",
            "updateBrokerConfig -b b:2 -k a -v 1",
            "consumerProgress -g G -t T",
            "queryMsgById -i ID",
            "queryMsgByUniqueKey -i ID -t T",
            "queryMsgByKey -t T -k K",
            "sendMessage -t T -p body -k K -c tag",
            "consumeMessage -t T",
        ] {
            let args: Vec<OsString> = std::iter::once("mqadmin")
                .chain(text.split(' '))
                .map(OsString::from)
                .collect();
            assert!(crate::cli::understands(translate(&args).unwrap()), "{text}");
        }
    }
}
