package rocketcluster.clients;

import java.nio.charset.StandardCharsets;
import java.util.Arrays;
import java.util.Set;
import java.util.concurrent.ConcurrentSkipListSet;
import java.util.concurrent.locks.LockSupport;
import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;
import org.apache.rocketmq.client.consumer.listener.ConsumeConcurrentlyStatus;
import org.apache.rocketmq.client.consumer.listener.MessageListenerConcurrently;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.common.message.MessageExt;

/** One entry point for what run.sh runs. */
public final class Main {
    private static final String USAGE = """
        usage: java -cp 'lib/*' rocketcluster.clients.Main MODE --namesrv HOST:PORT [options]
          scenarios  [--only a,b] [--threads N]                    every scenario, one PASS or FAIL line each
          mqadmin    --dir FOLDER                                  the mqadmin commands, checked by their output
          topic      --topic T --queues N                          creates a topic on every master
          work       --topic T --messages N                        a consumer that takes its time over messages that were sent before
          store      --topic T --name BROKER --broker ADDRESS --state FILE --seen A,B --cut A --fill C --retain yes
                                                                   finds what was filled in before, fills more in
          failover   --name BROKER --pids ADDRESS=PID,...           kills the group's master under a producer and a consumer
        """;

    private Main() {
    }

    public static void main(String[] args) {
        int code = 2;
        try {
            if (args.length > 0) {
                code = run(args[0], new Options(Arrays.copyOfRange(args, 1, args.length)));
            } else {
                System.err.print(USAGE);
            }
        } catch (IllegalArgumentException e) {
            System.err.println(e.getMessage() + "\n" + USAGE);
        } catch (Throwable e) {
            e.printStackTrace();
            code = 1;
        }
        System.out.flush();
        // Clients leave threads behind that are no daemons.
        Runtime.getRuntime().halt(code);
    }

    private static int run(String mode, Options options) throws Exception {
        return switch (mode) {
            case "scenarios" -> Scenarios.run(options);
            case "mqadmin" -> Admin.run(options);
            case "topic" -> {
                try (Rig rig = new Rig(options.namesrv(), "", "topic", Rig.admin(options.namesrv()))) {
                    rig.createTopic(options.get("topic"), options.number("queues", 8));
                }
                yield 0;
            }
            case "work" -> work(options);
            case "store" -> Store.run(options);
            case "failover" -> Failover.run(options);
            default -> throw new IllegalArgumentException("unknown mode " + mode);
        };
    }

    /** A backlog, and a consumer that needs some seconds for it. */
    private static int work(Options options) throws Exception {
        String topic = options.get("topic");
        try (Rig rig = new Rig(options.namesrv(), topic, "work", Rig.admin(options.namesrv()))) {
            rig.createTopic(topic, 4);
            DefaultMQProducer producer = rig.producer();
            int messages = options.number("messages", 300);
            for (int n = 0; n < messages; n++) {
                Rig.ok(producer.send(new Message(topic, Integer.toString(n).getBytes(StandardCharsets.UTF_8))));
            }
            System.out.println("sent");
            Set<String> got = new ConcurrentSkipListSet<>();
            DefaultMQPushConsumer consumer = rig.newPushConsumer();
            consumer.subscribe(topic, "*");
            consumer.setConsumeThreadMin(1);
            consumer.setConsumeThreadMax(1);
            consumer.registerMessageListener((MessageListenerConcurrently) (batch, context) -> {
                for (MessageExt message : batch) {
                    LockSupport.parkNanos(100_000_000);
                    got.add(Rig.body(message));
                }
                return ConsumeConcurrentlyStatus.CONSUME_SUCCESS;
            });
            rig.start(consumer);
            Rig.until(120, "the whole backlog", () -> got.size() == messages);
            return 0;
        }
    }
}
