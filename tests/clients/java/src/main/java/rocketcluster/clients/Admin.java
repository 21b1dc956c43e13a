package rocketcluster.clients;

import java.io.ByteArrayOutputStream;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.regex.Pattern;
import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.client.producer.SendResult;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.tools.command.MQAdminStartup;

/**
 * The commands of mqadmin, through its own main method in one virtual machine, judged by what they print: mqadmin ends with
 * exit code 0 whatever happens, and scripts read its text.
 */
final class Admin {
    private final String namesrv;
    private final String only;
    private final PrintStream out = System.out;
    private final AtomicInteger passed = new AtomicInteger();
    private final List<String> failed = new ArrayList<>();
    private volatile String running = "";
    private volatile ByteArrayOutputStream captured = new ByteArrayOutputStream();

    private Admin(String namesrv, String only) {
        this.namesrv = namesrv;
        this.only = only;
    }

    static int run(Options options) throws Exception {
        // 4.9 prints nothing without this file; set before the first class of the tools is loaded.
        Path home = Path.of(options.get("dir")).toAbsolutePath();
        Files.createDirectories(home.resolve("conf"));
        Files.writeString(home.resolve("conf/logback_tools.xml"), "<configuration><root level=\"OFF\"/></configuration>\n");
        System.setProperty("rocketmq.home.dir", home.toString());
        Admin admin = new Admin(options.namesrv(), options.get("only", ""));
        // A command that does not like its options ends the virtual machine; Main halts instead, which runs no hook.
        Runtime.getRuntime().addShutdownHook(new Thread(() -> admin.out.println("FAIL " + admin.running + " ended the process: " + admin.captured)));
        String run = Long.toString(System.currentTimeMillis() % 100_000_000, 36);
        try (Rig rig = new Rig(options.namesrv(), run, "mqadmin", Rig.admin(options.namesrv()))) {
            admin.all(rig, home);
        }
        admin.out.println(admin.passed + " passed, " + admin.failed.size() + " failed");
        return admin.failed.isEmpty() ? 0 : 1;
    }

    private static boolean five() {
        try {
            Class.forName("org.apache.rocketmq.remoting.protocol.body.ClusterInfo");
            return true;
        } catch (ClassNotFoundException e) {
            return false;
        }
    }

    /** The text that one command prints, standard error included. */
    private String text(String... args) {
        ByteArrayOutputStream bytes = new ByteArrayOutputStream();
        running = String.join(" ", args);
        captured = bytes;
        PrintStream stdout = System.out;
        PrintStream stderr = System.err;
        PrintStream capture = new PrintStream(bytes, true, StandardCharsets.UTF_8);
        System.setOut(capture);
        System.setErr(capture);
        try {
            String[] full = Arrays.copyOf(args, args.length + 2);
            full[args.length] = "-n";
            full[args.length + 1] = namesrv;
            MQAdminStartup.main(full);
        } catch (Throwable e) {
            e.printStackTrace(capture);
        } finally {
            System.setOut(stdout);
            System.setErr(stderr);
        }
        return bytes.toString(StandardCharsets.UTF_8);
    }

    private String expect(String command, String... patterns) {
        return expectWithin(0, command, patterns);
    }

    /** Runs a command until its text matches every pattern (or, with a leading "!", does not), at most for the given time. */
    private String expectWithin(int seconds, String command, String... patterns) {
        String[] args = command.split(" ");
        if (!only.isEmpty() && !command.startsWith(only)) {
            return "";
        }
        long began = System.nanoTime();
        while (true) {
            String text = text(args);
            String problem = text.contains("Exception") ? "an exception" : null;
            for (String pattern : patterns) {
                boolean negative = pattern.startsWith("!");
                if (Pattern.compile(negative ? pattern.substring(1) : pattern, Pattern.MULTILINE).matcher(text).find() == negative) {
                    problem = negative ? "found " + pattern.substring(1) : "no match for " + pattern;
                }
            }
            long took = TimeUnit.NANOSECONDS.toMillis(System.nanoTime() - began);
            if (problem == null) {
                passed.incrementAndGet();
                out.println("PASS " + command + " " + took);
                return text;
            }
            if (took > seconds * 1000L) {
                failed.add(command);
                String shown = text.strip();
                System.err.println("---- " + command + ": " + problem + "\n" + shown);
                out.println("FAIL " + command + " " + problem + " in: " + shown.substring(0, Math.min(shown.length(), 500)).replace("\n", "\n    "));
                return text;
            }
        }
    }

    private void all(Rig rig, Path home) throws Exception {
        String topic = rig.topic;
        String group = rig.group;
        var cluster = rig.admin.examineBrokerClusterInfo();
        String name = cluster.getClusterAddrTable().keySet().iterator().next();
        List<String> brokers = cluster.getBrokerAddrTable().keySet().stream().sorted().toList();
        String broker = brokers.get(0);
        String address = cluster.getBrokerAddrTable().get(broker).getBrokerAddrs().get(0L);
        String any = Pattern.quote(address);

        for (String each : brokers) {
            expect("clusterList", "^#Cluster Name +#Broker Name +#BID +#Addr", "^" + name + " +" + each + " +0 +\\S+:\\d+ +V\\S+ ");
        }
        expect("clusterList -m", "#InTotalYest", "^" + name + " +" + broker + " ");
        expect("updateTopic -c " + name + " -t " + topic, "create topic to " + any + " success", "readQueueNums=8", "perm=RW-");
        expect("updateTopic -b " + address + " -t " + topic + "_one -r 2 -w 2", "create topic to " + any + " success", "readQueueNums=2");
        expectWithin(10, "topicList", "^" + topic + "$", "^" + topic + "_one$", "^TBW102$", "^" + name + "$");
        expectWithin(10, "topicRoute -t " + topic, "\"brokerName\": ?\"" + broker + "\"", "\"readQueueNums\": ?8", "\"brokerDatas\"", any);
        expect("topicClusterList -t " + topic, "^" + name + "$");
        expect("updateTopicPerm -c " + name + " -t " + topic + " -p 4", "update topic perm from 6 to 4 in");
        expectWithin(10, "topicRoute -t " + topic, "\"perm\": ?4");
        expect("updateTopicPerm -c " + name + " -t " + topic + " -p 6", "update topic perm from 4 to 6 in");
        expectWithin(10, "topicRoute -t " + topic, "\"perm\": ?6");
        expect("allocateMQ -t " + topic + " -i 10.0.0.1,10.0.0.2", "\"queueId\"");

        DefaultMQProducer producer = rig.producer();
        SendResult result = null;
        for (int i = 0; i < 32; i++) {
            result = Rig.ok(producer.send(new Message(topic, "TagA", "key" + i, ("message " + i).getBytes(StandardCharsets.UTF_8))));
        }
        Inbox inbox = new Inbox();
        DefaultMQPushConsumer consumer = rig.start(rig.newPushConsumer(), "*", inbox);
        Rig.until(30, "32 messages", () -> inbox.size() == 32);

        expect("topicStatus -t " + topic, "^#Broker Name +#QID +#Min Offset +#Max Offset", "^" + broker + " +0 +0 +2 +20");
        expect("brokerStatus -b " + address, "^brokerVersionDesc +: V", "^bootTimestamp +:", "^putTps +:", "^msgPutTotalTodayNow +:", "^commitLogMaxOffset +:", "^runtime +:");
        expect("brokerStatus -c " + name, any + " +brokerVersionDesc");
        expectWithin(15, "consumerProgress -g " + group, "^#Topic +#Broker Name +#QID +#Broker Offset +#Consumer Offset", "^" + topic + " +" + broker + " +0 +2 +2 +0 ",
            "Diff Total: 0$");
        expect("consumerProgress", "^#Group +#Count +#Version", "^" + group + " +1 +V\\S+ +PUSH +CLUSTERING ");
        expect("consumerStatus -g " + group, "^1? *0*1 .*" + Pattern.quote(consumer.getInstanceName()), "Same subscription in the same group of consumer", "Rebalance OK");
        expect("consumerConnection -g " + group, "^#ClientId +#ClientAddr +#Language +#Version", " JAVA +V", "Below is subscription:", "^#Topic +#SubExpression", "^" + topic + " +\\*",
            "ConsumeType: CONSUME_PASSIVELY", "MessageModel: CLUSTERING");
        expectWithin(5, "producerConnection -g " + group + "_P -t " + topic, "^0001 +\\S+ +\\S+:\\d+ +JAVA +V");
        expectWithin(10, "topicList -c", "^" + name + " +" + topic + " +" + group);
        // 4.9 finds an offset id only, 5.x wants the topic and takes both kinds of id.
        String byId = "queryMsgById " + (five() ? "-t " + topic + " " : "") + "-i ";
        expectWithin(10, byId + result.getOffsetMsgId(), "^OffsetID: +" + result.getOffsetMsgId() + "$", "^Topic: +" + topic + "$", "^Tags: +\\[?TagA\\]?", "^Keys: +\\[?key31\\]?",
            "^Queue ID: +" + result.getMessageQueue().getQueueId() + "$", "^Queue Offset: +" + result.getQueueOffset() + "$", "^Message Body", "consumerGroup=" + group);
        if (five()) {
            expect(byId + result.getMsgId(), "^Keys: +\\[?key31\\]?");
        }
        expectWithin(10, "queryMsgByKey -t " + topic + " -k key31", "^#Message ID +#QID +#Offset", "^" + result.getMsgId() + " +" + result.getMessageQueue().getQueueId() + " +" + result.getQueueOffset());
        expectWithin(10, "queryMsgByUniqueKey -t " + topic + " -i " + result.getMsgId(), "^Topic: +" + topic, "^Queue Offset: +" + result.getQueueOffset());
        expect("queryMsgByOffset -t " + topic + " -b " + result.getMessageQueue().getBrokerName() + " -i " + result.getMessageQueue().getQueueId() + " -o " + result.getQueueOffset(),
            "^OffsetID: +" + result.getOffsetMsgId());
        expect("printMsg -t " + topic + " -d true", "BODY: ?message 7", "BODY: ?message 31");
        expect("printMsgByQueue -t " + topic + " -a " + broker + " -i 0 -p true -d true", "BODY: ?message ");
        expect("consumeMessage -t " + topic + " -b " + broker + " -i 0 -o 0 -c 2", "Consume ok", "BODY: ?message ");
        expect("sendMessage -t " + topic + " -p hello -k sent -c tag", "^#Broker Name +#QID +#Send Result", " SEND_OK ");
        expect("checkMsgSendRT -t " + topic + " -a 3 -s 128", "#Broker Name", "Avg RT: ");
        expect("sendMsgStatus -b " + broker + " -s 128 -c 3", "rt:?=?\\d*", "SEND_OK");
        expect("brokerConsumeStats -b " + address, "^#Topic +#Group", "^" + topic + " +" + group, "Diff Total: ");
        expect("statsAll -t " + topic, "^#Topic +#Consumer Group", "^" + topic + " +" + group);
        expect("queryCq -t " + topic + " -q 0 -i 0 -c 3 -b " + address, "minQueueIndex|====", "physicOffset|pysicOffset|size");

        expect("updateSubGroup -c " + name + " -g " + group + "_made -r 5", "create subscription group to " + any + " success", "retryMaxTimes=5");
        expect("getConsumerConfig -g " + group + "_made", "retryMaxTimes", "=  5$", "^=+" + name + ":" + broker + "=+$");
        expect("deleteSubGroup -c " + name + " -g " + group + "_made", "delete subscription group \\[" + group + "_made\\] from broker \\[" + any + "\\] in cluster \\[" + name + "\\] success");

        expect("getBrokerConfig -b " + address, "============" + any + "============", "^brokerName +=  " + broker + "$", "^brokerClusterName +=  " + name + "$", "^listenPort +=  ");
        expect("getBrokerConfig -c " + name, "^brokerName +=  " + broker + "$", "aster: ?" + any);
        expect("updateBrokerConfig -b " + address + " -k fileReservedTime -v 49", "update broker config success, " + any);
        expect("getBrokerConfig -b " + address, "^fileReservedTime +=  49$");
        expect("updateBrokerConfig -b " + address + " -k fileReservedTime -v 72", "update broker config success, " + any);
        expect("cleanExpiredCQ -b " + address, "success");
        expect("cleanUnusedTopic -b " + address, "success");

        expect("updateKvConfig -s NS_" + group + " -k k -v v", "create or update kv config to namespace success");
        expect("deleteKvConfig -s NS_" + group + " -k k", "delete kv config from namespace success");
        expect("updateOrderConf -t " + topic + " -m put -v " + broker + ":4", "update orderConf success|success");
        expectWithin(5, "updateOrderConf -t " + topic + " -m get", broker + ":4");
        expect("updateOrderConf -t " + topic + " -m delete", "delete orderConf success|success");
        expect("getNamesrvConfig", "^listenPort +=  \\d+$");
        expect("updateNamesrvConfig -k clusterTest -v false", "update name server config success");
        expect("wipeWritePerm -b " + broker, "wipe write perm of broker\\[" + broker + "\\] in name server\\[.*\\] OK, [1-9]");
        expectWithin(10, "topicRoute -t " + topic, "\"perm\": ?4");
        expect("addWritePerm -b " + broker, "add write perm of broker\\[" + broker + "\\] in name server\\[.*\\] OK, [1-9]");
        expectWithin(10, "topicRoute -t " + topic, "!\"perm\": ?4");

        // Offsets of a group without a member.
        consumer.shutdown();
        expectWithin(20, "skipAccumulatedMessage -g " + group + " -t " + topic, "^#?brokerName +#?queueId|#brokerName", broker + " +0 ");
        expectWithin(20, "consumerProgress -g " + group, "Diff Total: 0$");
        expectWithin(20, "resetOffsetByTime -g " + group + " -t " + topic + " -s 0", "#brokerName +#queueId +#", "^" + broker + " +0 +");
        expectWithin(20, "consumerProgress -g " + group, "Diff Total: [1-9]");
        expect("updateSubGroup -c " + name + " -g " + group + "_copy", "success");
        expect("cloneGroupOffset -s " + group + " -d " + group + "_copy -t " + topic, "clone group offset success");

        expect("deleteTopic -c " + name + " -t " + topic + "_one", "delete topic \\[" + topic + "_one\\] from cluster \\[" + name + "\\] success",
            "delete topic \\[" + topic + "_one\\] from NameServer success");
        expectWithin(10, "topicList", "!^" + topic + "_one$");
        expect("deleteSubGroup -c " + name + " -g " + group + "_copy", "success");
    }
}
